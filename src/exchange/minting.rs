//! Installation tokens for the pool's Apps: minted once for all who need them, renewed before they expire, never kept on
//! disk. (docs.github.com, "Authenticating as a GitHub App installation".)

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::asked::Asked;
use super::tally::Trace;
use super::{AGENT, Exchange, now_ms};
use crate::body::{self, RequestBody};
use crate::pool::account::{Installation, Secret};
use crate::pool::{Account, App, Kind, Wanted};

/// How long one waits for another to look an installation up.
const FINDING: Duration = Duration::from_secs(10);

impl Exchange {
    /// What an account authenticates with, minted if need be.
    ///
    /// # Errors
    /// Why there is none; no secret in it.
    pub(super) async fn secret(&self, account: &Account, asked: &Asked, trace: &Trace<'_>) -> Result<Secret, String> {
        let installation = match &account.kind {
            Kind::Token(secret) => return Ok(secret.clone()),
            Kind::Installation(installation) => installation,
        };
        if let Some(secret) = installation.current(now_ms()) {
            return Ok(secret);
        }
        if self.outages.is_offline(&asked.target) {
            return Err("GitHub is offline".into());
        }
        // One mints, the others wait for it.
        let _minting = installation.minting.lock().await;
        match installation.current(now_ms()) {
            Some(secret) => Ok(secret),
            None if installation.has_failed(now_ms()) => Err("minting has failed a moment ago".into()),
            None => {
                let minted = self.mint(account, installation, asked, trace).await;
                minted.inspect_err(|_| installation.failed(now_ms()))
            }
        }
    }

    async fn mint(
        &self,
        account: &Account,
        installation: &Installation,
        asked: &Asked,
        trace: &Trace<'_>,
    ) -> Result<Secret, String> {
        #[derive(Deserialize)]
        struct Minted {
            token: String,
            expires_at: String,
        }
        let path = format!("/app/installations/{}/access_tokens", installation.number);
        let (status, body) = self.as_app(&installation.app, Method::POST, &path, asked, trace).await?;
        if status != StatusCode::CREATED {
            return Err(format!("GitHub answered {status} to POST {path}"));
        }
        let minted: Minted = serde_json::from_slice(&body).map_err(|_| "GitHub's answer has no token".to_owned())?;
        let form = &time::format_description::well_known::Rfc3339;
        let expires = time::OffsetDateTime::parse(&minted.expires_at, form).ok();
        // An hour, if it does not say.
        let expires =
            expires.and_then(|t| u64::try_from(t.unix_timestamp()).ok()).map_or(now_ms() + 3_600_000, |s| s * 1000);
        let secret = Secret::new(&minted.token)?;
        installation.keep(secret.clone(), now_ms(), expires);
        if account.owner().is_none() {
            self.learn_owner(account, installation, asked, trace).await;
        }
        Ok(secret)
    }

    /// Whose the installation is that the operator named: so that it is preferred for what is theirs.
    async fn learn_owner(&self, account: &Account, installation: &Installation, asked: &Asked, trace: &Trace<'_>) {
        let path = format!("/app/installations/{}", installation.number);
        if let Ok((StatusCode::OK, body)) = self.as_app(&installation.app, Method::GET, &path, asked, trace).await
            && let Some(login) = Described::read(&body).and_then(|d| d.account)
        {
            account.belongs_to(&login.login);
        }
    }

    /// Finds the installations that the pool's Apps have for the owner in the path; those of Apps whose installation the
    /// operator named are known.
    pub(super) async fn find_installations(&self, asked: &Asked, trace: &Trace<'_>, wanted: &Wanted) {
        if self.outages.is_offline(&asked.target) {
            return;
        }
        for app in self.pool.apps.iter().filter(|a| !a.fixed && a.realm == wanted.realm) {
            let key = wanted.owner.clone().unwrap_or_default();
            // Without an owner, any installation will do: the first.
            let of_app = |a: &Arc<Account>| matches!(&a.kind, Kind::Installation(i) if Arc::ptr_eq(&i.app, app));
            let is_known =
                || self.pool.is_known(app, &key) || (key.is_empty() && self.pool.accounts().iter().any(of_app));
            if is_known() {
                continue;
            }
            // One looks, the others who ask for the same owner wait for it.
            let finding = self.pool.finding(app, &key);
            let Ok(_finding) = tokio::time::timeout(FINDING, finding.lock()).await else { continue };
            if is_known() {
                continue;
            }
            match self.installation_for(app, asked, trace, wanted).await {
                Ok((number, Some(login))) if key.is_empty() => {
                    self.pool.found(app, &login, number);
                    self.pool.found(app, "", number);
                }
                Ok((number, _)) => self.pool.found(app, &key, number),
                Err(why) => {
                    self.pool.not_found_out(app, &key);
                    tracing::warn!(app = app.name, why, "its installation could not be looked up");
                }
            }
        }
    }

    async fn installation_for(
        &self,
        app: &Arc<App>,
        asked: &Asked,
        trace: &Trace<'_>,
        wanted: &Wanted,
    ) -> Result<(Option<u64>, Option<String>), String> {
        let paths = match (&wanted.owner, &wanted.repository) {
            // It may be installed on others of the owner's repositories only.
            (Some(owner), Some(repository)) => vec![
                format!("/repos/{repository}/installation"),
                format!("/orgs/{owner}/installation"),
                format!("/users/{owner}/installation"),
            ],
            (Some(owner), None) => vec![format!("/orgs/{owner}/installation"), format!("/users/{owner}/installation")],
            _ => vec!["/app/installations?per_page=1".to_owned()],
        };
        for path in paths {
            let (status, body) = self.as_app(app, Method::GET, &path, asked, trace).await?;
            match status {
                StatusCode::OK => {
                    let one = Described::read(&body);
                    let found =
                        one.or_else(|| serde_json::from_slice::<Vec<Described>>(&body).ok()?.into_iter().next());
                    let login = found.as_ref().and_then(|d| d.account.as_ref().map(|a| a.login.to_ascii_lowercase()));
                    return Ok((found.map(|d| d.id), login));
                }
                StatusCode::NOT_FOUND => {}
                status => return Err(format!("GitHub answered {status} to GET {path}")),
            }
        }
        Ok((None, None))
    }

    /// A request of our own, as an App.
    async fn as_app(
        &self,
        app: &App,
        method: Method,
        path: &str,
        asked: &Asked,
        trace: &Trace<'_>,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", jwt(app)?)).map_err(|e| e.to_string())?;
        authorization.set_sensitive(true);
        self.own(authorization, &format!("app:{}", app.name), method, path, asked, trace).await
    }

    /// Whether GitHub takes a credential at all: what it refused may have been the request. `/rate_limit` costs nothing.
    pub(super) async fn is_taken(&self, account: &Account, secret: &Secret, asked: &Asked, trace: &Trace<'_>) -> bool {
        let authorization = secret.authorization.clone();
        let told = self.own(authorization, &account.name, Method::GET, "/rate_limit", asked, trace).await;
        // No answer is no verdict.
        !matches!(told, Ok((StatusCode::UNAUTHORIZED, _)))
    }

    /// A request of our own, to the API that is asked.
    async fn own(
        &self,
        authorization: HeaderValue,
        name: &str,
        method: Method,
        path: &str,
        asked: &Asked,
        trace: &Trace<'_>,
    ) -> Result<(StatusCode, Bytes), String> {
        let base = asked.api_base();
        let mut ours = asked.for_page(self, &format!("{base}{path}")).ok_or("the path is not valid")?;
        ours.route = self.routes.find(&method, path.split('?').next().unwrap_or(path));
        ours.method = method;
        ours.is_plain_only();
        ours.pooled = None;
        ours.headers = HeaderMap::new();
        ours.headers.insert(header::AUTHORIZATION, authorization);
        ours.headers.insert(header::ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
        ours.headers.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
        ours.headers.extend(asked.headers.get(header::HOST).map(|host| (header::HOST, host.clone())));
        ours.credential = self.credentials.identify(&ours.headers);
        ours.credential_name = self.realm_name(&ours.realm, &name.into());
        let mut request: Request<RequestBody> = ours.request(&self.via, RequestBody::Empty);
        if ours.method == Method::POST {
            request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let response = self.send(&ours, trace, request).await.map_err(|e| e.to_string())?;
        let (parts, body) = response.into_parts();
        match body::collect(body, super::SMALL).await.map_err(|e| e.to_string())? {
            Ok(whole) => {
                if parts.status.is_success() {
                    self.learn(&ours, &parts.headers, &whole);
                }
                Ok((parts.status, whole))
            }
            Err(_) => Err("GitHub's answer is too long".into()),
        }
    }
}

#[derive(Deserialize)]
struct Described {
    id: u64,
    account: Option<Login>,
}

#[derive(Deserialize)]
struct Login {
    login: String,
}

impl Described {
    fn read(body: &[u8]) -> Option<Described> {
        serde_json::from_slice(body).ok()
    }
}

/// An App's JWT, for ten minutes at most; a minute of that is for clocks that differ.
fn jwt(app: &App) -> Result<String, String> {
    #[derive(Serialize)]
    struct Claims<'a> {
        iat: u64,
        exp: u64,
        iss: &'a str,
    }
    let now = now_ms() / 1000;
    let claims = Claims { iat: now - 60, exp: now + 540, iss: &app.issuer };
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256);
    jsonwebtoken::encode(&header, &claims, &app.key).map_err(|_| "the App's key cannot sign".to_owned())
}
