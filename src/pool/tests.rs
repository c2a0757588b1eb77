use http::Method;

use super::*;
use crate::github::limits::Quota;

fn pool(names: &[&str]) -> Pool {
    let token = |n: &&str| FoundToken { name: (*n).into(), token: format!("ghp_{n}"), host: None };
    let tokens = names.iter().map(token).collect();
    Pool::new(Found { tokens, apps: Vec::new() }, "api.github.com", Duration::ZERO).unwrap()
}

fn wanted(path: &str) -> Wanted {
    Wanted::of(&"api.github.com".into(), &Method::GET, path, "GET /x")
}

fn name(choice: Choice) -> String {
    match choice {
        Choice::Account(account) => account.name.to_string(),
        Choice::Resting(ms) => format!("resting {ms}"),
        Choice::None => "none".into(),
    }
}

fn left(remaining: u64, reset: u64) -> Quota {
    Quota { remaining: Some(remaining), reset: Some(reset), resource: Some("core"), ..Quota::default() }
}

#[test]
fn the_one_with_most_left_that_does_not_rest() {
    let pool = pool(&["a", "b"]);
    let all = pool.accounts();
    let core = wanted("/repos/o/r");
    all[0].observe(&left(10, 100), 1000);
    all[1].observe(&left(20, 100), 1000);
    assert_eq!(name(pool.choose(&core, &[], 2000)), "b");
    all[1].observe(&left(0, 100), 3000);
    assert_eq!(name(pool.choose(&core, &[], 4000)), "a");
    assert_eq!(name(pool.choose(&wanted("/search/issues"), &[], 4000)), "a", "another pool of GitHub's");
    all[0].rest(Some("core"), 50_000);
    assert_eq!(name(pool.choose(&core, &[], 4000)), "resting 46000");
    assert_eq!(name(pool.choose(&core, &[all[0].id], 4000)), "resting 96000");
    assert_eq!(name(pool.choose(&core, &[], 100_001)), "a", "the hour is over");
    all[0].rest(None, 200_000);
    assert_eq!(name(pool.choose(&wanted("/graphql"), &[], 101_000)), "b");
    assert_eq!(name(pool.choose(&core, &[0, 1], 101_000)), "none");
}

#[test]
fn who_sees_comes_before_who_has_most() {
    let pool = pool(&["a", "b"]);
    let all = pool.accounts();
    let there = wanted("/repos/O/r");
    all[0].observe(&left(10, 100), 1000);
    pool.saw(&all[0], &there);
    assert_eq!(name(pool.choose(&wanted("/repos/o/R/pulls"), &[], 2000)), "a");
    assert_eq!(name(pool.choose(&wanted("/repos/o/other"), &[], 2000)), "b");
    pool.did_not_see(&[all[1].id], &wanted("/repos/o/other"));
    assert_eq!(name(pool.choose(&wanted("/repos/o/other"), &[], 2000)), "a");
    let elsewhere = Wanted::of(&"ghe.example".into(), &Method::GET, "/repos/o/r", "GET /x");
    assert_eq!(name(pool.choose(&elsewhere, &[], 2000)), "none", "credentials are for one API");
}

#[test]
fn a_404_is_believed_of_who_was_given_such_things_there() {
    let pool = pool(&["a", "b"]);
    let all = pool.accounts();
    let file = wanted("/repos/o/r/contents/x");
    let hook = |n| Wanted { route: "GET /hooks", ..wanted(&format!("/repos/o/r/hooks/{n}")) };
    assert!(!pool.is_final(&all[0], &file) && pool.is_final(&all[0], &wanted("/user")));
    pool.saw(&all[0], &file);
    assert!(pool.is_final(&all[0], &wanted("/repos/o/r/contents/y")) && !pool.is_final(&all[1], &file));
    assert!(!pool.is_final(&all[0], &hook(5)), "to see a repository is not to see its hooks");
    pool.nobody_saw(&hook(999));
    assert!(pool.is_final(&all[0], &hook(999)) && !pool.is_final(&all[0], &hook(5)));
    assert!(!pool.is_final(&all[0], &wanted("/orgs/acme/teams")));
    // Of those who are left, one whose word is final is asked first.
    all[1].observe(&left(10, 100), 1000);
    pool.saw(&all[1], &hook(1));
    assert_eq!(name(pool.choose(&hook(5), &[7], 2000)), "b");
}

#[test]
fn who_knows_better_is_waited_for() {
    let pool = pool(&["a", "b"]);
    let all = pool.accounts();
    let of = |route, path: &str| Wanted { route, ..wanted(path) };
    let (there, file) = (of("GET /repos", "/repos/o/r"), of("GET /r/contents/{path}", "/repos/o/r/contents/x"));
    let hook = of("GET /hooks", "/repos/o/r/hooks/1");
    assert_eq!(pool.back_in(&there, &[], 1000), None, "nobody rests");
    all[0].rest(Some("core"), 5000);
    assert_eq!(pool.back_in(&there, &[], 1000), Some(4000));
    assert_eq!(pool.back_in(&there, &[1], 1000), None, "nothing is known of it");
    pool.saw(&all[0], &there);
    assert_eq!(pool.back_in(&file, &[1], 1000), Some(4000), "it sees the repository, and the other does not");
    pool.saw(&all[1], &there);
    assert_eq!(pool.back_in(&file, &[1], 1000), None, "both do");
    pool.saw(&all[0], &file);
    pool.saw(&all[0], &hook);
    assert_eq!(pool.back_in(&file, &[1], 1000), None, "and so both see its code");
    assert_eq!(pool.back_in(&hook, &[1], 1000), Some(4000), "but not its hooks");
    pool.did_not_see(&[0], &hook);
    assert_eq!(pool.back_in(&hook, &[1], 1000), None);
}

#[test]
fn what_a_request_is_for() {
    for (path, resource, owner, repository) in [
        ("/repos/O/R/pulls", "core", Some("o"), Some("o/r")),
        ("/orgs/Acme/repos", "core", Some("acme"), None),
        ("/search/code", "code_search", None, None),
        ("/search/issues", "search", None, None),
        ("/graphql", "graphql", None, None),
        ("/repositories/7/issues", "core", None, Some("id/7")),
        ("/user", "core", None, None),
        ("/repos/O/R/contents/x?ref=main", "core", Some("o"), Some("o/r")),
    ] {
        let wanted = wanted(path);
        let found = (wanted.resource, wanted.owner.as_deref(), wanted.repository.as_deref());
        assert_eq!(found, (resource, owner, repository), "{path}");
    }
}

#[test]
fn tokens_are_renewed_before_they_expire_and_failures_are_shared() {
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let pem = key.serialize_pem();
    let app = FoundApp { name: "a".into(), id: "1".into(), installation: Some(7), pem, host: None };
    let pool = Pool::new(Found { tokens: Vec::new(), apps: vec![app] }, "api.github.com", Duration::ZERO).unwrap();
    let account = pool.accounts().remove(0);
    let Kind::Installation(installation) = &account.kind else { panic!("an installation") };
    let secret = account::Secret::new("ghs_x").unwrap();
    let hour = 3_600_000;
    installation.keep(secret.clone(), 0, hour);
    assert!(installation.current(hour - 301_000).is_some() && installation.current(hour - 300_000).is_none());
    assert!(!installation.forget(&secret, 59_000), "a new one would fare no better");
    assert!(installation.current(0).is_none());
    installation.failed(hour);
    assert!(installation.has_failed(hour + 9_000) && !installation.has_failed(hour + 10_000));
    assert!(!format!("{account:?}").contains("ghs_x"));
}
