//! What `deploy/` and the migration guide say, held against the schemas and the code.

use std::path::{Path, PathBuf};

use crate::support::missing;
use crate::support::tap::{GHTAP, command};

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn kubernetes_files_fit_the_apis_schemas() {
    let validate = here("tests/.venv/bin/kubernetes-validate");
    if !validate.exists() {
        missing("kubernetes_files_fit_the_apis_schemas", "kubernetes-validate");
        return;
    }
    let mut checked = 0;
    for file in std::fs::read_dir(here("deploy/kubernetes")).unwrap() {
        let path = file.unwrap().path();
        // A resource of trust-manager's own: there is no schema of it.
        if path.ends_with("trust-manager.yaml") {
            continue;
        }
        let output = command(&validate).arg("--strict").arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.contains("passed") && !said.contains("WARN"),
            "{}: {said}",
            path.display()
        );
        checked += 1;
    }
    assert!(checked >= 6, "{checked}");
}

#[test]
fn the_guide_names_every_variable_and_file() {
    let guide = std::fs::read_to_string(here("docs/migrating.md")).unwrap();
    for (variable, option) in ghtap::config::MIRRORS_VARIABLES {
        assert!(guide.contains(&format!("`{variable}")), "{variable}");
        assert!(guide.contains(&format!("--{option}")), "{option}");
    }
    for file in std::fs::read_dir(here("deploy/kubernetes")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(guide.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn a_ca_from_a_secret_is_taken_as_the_init_container_puts_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let made =
        command(GHTAP).args(["ca", "init", "--data-dir", &at("made"), "--certs-dir", &at("certs")]).output().unwrap();
    assert!(made.status.success());
    // The lines of with-redis.yaml, in other places.
    let text = std::fs::read_to_string(here("deploy/kubernetes/with-redis.yaml")).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| l.starts_with("install ")).collect();
    assert_eq!(lines.len(), 3);
    let script = lines.join("\n").replace("/var/lib/ghtap", &at("volume")).replace("/secret", &at("made/ca"));
    std::fs::create_dir(at("volume")).unwrap();
    let copied = command("sh").args(["-ec", &script]).output().unwrap();
    assert!(copied.status.success(), "{copied:?}");
    let shown = command(GHTAP)
        .args(["ca", "show", "--data-dir", &at("volume/data"), "--certs-dir", &at("certs")])
        .output()
        .unwrap();
    assert!(shown.status.success(), "{shown:?}");
}
