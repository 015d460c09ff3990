//! A running server, asked over HTTP: what `query`, `tail` and `top` share.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use ureq::http::Response;

use super::{Failure, exit};

/// An answer that is an error has at most this many bytes.
const ERROR_BYTES_MAX: u64 = 64 << 10;

/// Which server.
#[derive(Debug, Args)]
pub(super) struct RemoteArgs {
    /// The server's data listener
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// A query token; better in $LOGWEIR_TOKEN, where the process list does not show it
    #[arg(long)]
    token: Option<String>,
}

/// The server.
pub(super) struct Remote {
    agent: ureq::Agent,
    url: String,
    token: Option<String>,
}

/// Why it did not answer with what was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It may, later.
    Away(String),
    /// It never will; with the exit code.
    Refused(u8, String),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Away(why) => Self::told(exit::UNAVAILABLE, why),
            Trouble::Refused(code, why) => Self::told(code, why),
        }
    }
}

/// The house's shape of an error.
#[derive(Deserialize)]
struct ErrorBody {
    detail: String,
    column: Option<usize>,
}

impl RemoteArgs {
    pub(super) fn remote(&self) -> Remote {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_recv_response(Some(Duration::from_secs(120)))
            .user_agent(concat!("logweir/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let token = self.token.clone().or_else(|| std::env::var("LOGWEIR_TOKEN").ok());
        Remote { agent, url: self.url.trim_end_matches('/').to_owned(), token: token.filter(|token| !token.is_empty()) }
    }
}

impl Remote {
    /// Where it is, for people.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Asks for `path` with `parameters`; the answer's body is still to be read. `query` is what the error's column is in.
    pub(super) fn get(
        &self,
        path: &str,
        parameters: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Result<Response<ureq::Body>, Trouble> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        for (name, value) in parameters {
            request = request.query(name, value);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut response = request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Trouble::Refused(exit::USAGE, format!("--url {} is no address: {error}", self.url))
            }
            _ => Trouble::Away(format!("{} does not answer: {error}", self.url)),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let text = response.body_mut().with_config().limit(ERROR_BYTES_MAX).read_to_string().unwrap_or_default();
        let query = parameters.iter().find(|(name, _)| *name == "query").map_or("", |(_, query)| query);
        Err(trouble(response.status().as_u16(), &text, query))
    }
}

/// What an answer that is an error means.
fn trouble(status: u16, text: &str, query: &str) -> Trouble {
    let error = serde_json::from_str::<ErrorBody>(text).ok();
    let detail = match &error {
        Some(error) => error.detail.clone(),
        None => format!("the server answered {status}: {}", text.chars().take(200).collect::<String>().trim()),
    };
    match (status, error.and_then(|error| error.column)) {
        (429 | 502..=504, _) => Trouble::Away(detail),
        (401 | 403, _) => Trouble::Refused(exit::FAILED, format!("{detail} (--token or $LOGWEIR_TOKEN)")),
        (_, Some(column)) => {
            let mark = " ".repeat(column.saturating_sub(1));
            Trouble::Refused(exit::USAGE, format!("{detail}\n  {query}\n  {mark}^"))
        }
        (400, None) => Trouble::Refused(exit::USAGE, detail),
        _ => Trouble::Refused(exit::FAILED, detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_whether_it_may_pass_and_where_a_query_is_wrong() {
        let busy = r#"{"error":"too_many_queries","detail":"too many queries run"}"#;
        assert_eq!(trouble(429, busy, ""), Trouble::Away("too many queries run".to_owned()));
        let bad = r#"{"error":"bad_query","detail":"this ( is never closed","column":3}"#;
        let told = "this ( is never closed\n  a (\n    ^";
        assert_eq!(trouble(400, bad, "a ("), Trouble::Refused(exit::USAGE, told.to_owned()));
        assert!(matches!(trouble(401, busy, ""), Trouble::Refused(exit::FAILED, why) if why.contains("--token")));
        assert!(
            matches!(trouble(404, "<html>", ""), Trouble::Refused(exit::FAILED, why) if why.contains("404: <html>"))
        );
    }
}
