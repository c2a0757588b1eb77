//! `ghtap ca`: the CA.

use std::path::PathBuf;
use std::process::ExitCode;

use super::certs::{Files, bundle, truststore};
use super::{Failure, place, print};
use crate::config::{Ca as Config, CaAction, CaNew, Export, Places};
use crate::github::API_HOST;
use crate::tls::files::{self, Ca};

pub fn run(config: &Config) -> Result<ExitCode, Failure> {
    match &config.action {
        CaAction::Init(new) => init(&config.places, new)?,
        CaAction::Path => {
            read(&config.places)?;
            print(format!("{}\n", Files::below(&certs_dir(&config.places)).ca.display()))?;
        }
        CaAction::Show => print(show(&config.places, &read(&config.places)?))?,
        CaAction::Export { format, output } => {
            let ca = read(&config.places)?;
            let bytes = match format {
                Export::Pem => ca.root_pem.clone().into_bytes(),
                Export::Der => ca.root_der().to_vec(),
                Export::P12 => truststore(&ca)?,
                Export::Bundle => bundle(&ca).into_bytes(),
            };
            match output {
                Some(path) => files::write(path, &bytes, 0o644).map_err(Failure::new)?,
                None => print(bytes)?,
            }
        }
        CaAction::Rotate(new) => rotate(&config.places, new)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Where clients find the CA: as the tap that runs has it.
fn certs_dir(places: &Places) -> PathBuf {
    place::running(&places.data_dir()).map_or_else(|| places.certs_dir(), |tap| tap.certs_dir)
}

fn read(places: &Places) -> Result<Ca, Failure> {
    files::read(&places.data_dir()).map_err(Failure::new)
}

fn init(places: &Places, new: &CaNew) -> Result<(), Failure> {
    place::make_private(&places.data_dir())?;
    let hosts = if new.intercept.is_empty() { vec![API_HOST.to_owned()] } else { new.intercept.clone() };
    let ca = files::open(&places.data_dir(), &hosts, new.unconstrained_root).map_err(Failure::new)?;
    Files::publish(&certs_dir(places), &ca)?;
    print(show(places, &ca))
}

/// A running tap notices, and shows leaves of the new CA within two seconds.
fn rotate(places: &Places, new: &CaNew) -> Result<(), Failure> {
    let hosts = match (new.intercept.is_empty(), files::read(&places.data_dir())) {
        (false, _) => new.intercept.clone(),
        (true, Ok(old)) => old.hosts,
        (true, Err(_)) => vec![API_HOST.to_owned()],
    };
    place::make_private(&places.data_dir())?;
    files::make(&places.data_dir(), &hosts, new.unconstrained_root).map_err(Failure::new)?;
    let ca = read(places)?;
    Files::publish(&certs_dir(places), &ca)?;
    print(format!(
        "{}a running tap shows the new CA within two seconds; clients must trust the new root\n",
        show(places, &ca)
    ))
}

fn show(places: &Places, ca: &Ca) -> String {
    let files = Files::below(&certs_dir(places));
    format!(
        "root         {}\nbundle       {} (the system's roots and ours)\ntrust store  {} (PKCS#12, the same; password: changeit)\n\
         sha256       {}\nfor          {}\nexpires      {}\n",
        files.ca.display(),
        files.bundle.display(),
        files.truststore.display(),
        ca.fingerprint(),
        ca.hosts.join(", "),
        ca.not_after.date(),
    )
}
