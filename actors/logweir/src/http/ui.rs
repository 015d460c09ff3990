//! The web UI: log explorer, pipeline view, and alerts view.
//!
//! - The files are compiled in and need no build step. They are compressed once, on first use.
//! - Browsers cache the files and revalidate them on every use (`ETag`), at the cost of a 304: files of different
//!   versions never mix.
//! - The content security policy allows only our own scripts, styles, and connections: a record's text that ended up as
//!   markup by mistake could still do nothing.
//! - `/` serves three kinds of clients: browsers, which accept `text/html`; Elasticsearch clients, which check the
//!   product; and all others (such as curl), which get a short text.

use std::io::Write as _;
use std::sync::LazyLock;

use actix_web::HttpRequest;
use actix_web::web::{self, ServiceConfig};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::answer::Answer;
use super::elastic;
use super::routing::{not_found, with_methods};
use super::shared::Shared;
use crate::config::Role;

/// Content security policy: no inline scripts, no third-party content, no framing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Paths of the views. All of them serve the same document; the script selects the view.
const VIEWS: &[&str] = if cfg!(feature = "ui") { &["/pipeline", "/alerts"] } else { &[] };

const DOCUMENT: &str = "index.html";

/// A file of the web UI.
struct File {
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
    gzip: Vec<u8>,
    etag: String,
}

#[cfg(feature = "ui")]
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../ui/", $name)) as &[u8])),*]
    };
}

#[cfg(not(feature = "ui"))]
const NAMED: &[(&str, &[u8])] = &[];

#[cfg(feature = "ui")]
const NAMED: &[(&str, &[u8])] = &files![
    "index.html",
    "style.css",
    "icon.svg",
    "main.js",
    "components.js",
    "api.js",
    "state.js",
    "time.js",
    "terms.js",
    "explorer.js",
    "search.js",
    "tail.js",
    "time-picker.js",
    "histogram.js",
    "facets.js",
    "table.js",
    "record.js",
    "context.js",
    "export.js",
    "empty-state.js",
    "pipeline.js",
    "dead-letters.js",
    "alerts.js",
    "vendor/preact.js",
    "vendor/hooks.js",
    "vendor/htm.js",
];

static FILES: LazyLock<Vec<File>> =
    LazyLock::new(|| NAMED.iter().map(|&(name, bytes)| File::new(name, bytes)).collect());

impl File {
    fn new(name: &'static str, bytes: &'static [u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        // Writing to memory cannot fail; if it did, an empty vector means "not compressed".
        let gzip = encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default();
        let digest = Sha256::digest(bytes);
        let etag = digest[..12].iter().fold(String::from("\""), |text, byte| text + &format!("{byte:02x}")) + "\"";
        Self { name, content_type: content_type(name), bytes, gzip, etag }
    }

    fn answer(&self, request: &HttpRequest) -> Answer {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let known = header("if-none-match").split(',').any(|tag| tag.trim().trim_start_matches("W/") == self.etag);
        let compressed = !self.gzip.is_empty() && accepts_gzip(header("accept-encoding"));
        let answer = if known {
            Answer::empty(304)
        } else if compressed {
            Answer::body(200, self.content_type, self.gzip.as_slice()).with_header("Content-Encoding", "gzip")
        } else {
            Answer::body(200, self.content_type, self.bytes)
        };
        answer
            .with_header("ETag", &self.etag)
            .with_header("Cache-Control", "no-cache")
            .with_header("Vary", "Accept, Accept-Encoding, User-Agent")
            .with_header("Content-Security-Policy", POLICY)
            .with_header("X-Content-Type-Options", "nosniff")
            .with_header("X-Frame-Options", "DENY")
            .with_header("Referrer-Policy", "no-referrer")
            .with_header("Cross-Origin-Opener-Policy", "same-origin")
            .with_header("Cross-Origin-Resource-Policy", "same-origin")
    }
}

/// Whether `gzip` is among the encodings, with a weight other than zero.
fn accepts_gzip(accepted: &str) -> bool {
    accepted.split(',').any(|part| {
        let (name, weight) = part.split_once(';').unwrap_or((part, ""));
        let excluded = weight.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()) == Some(0.0);
        name.trim().eq_ignore_ascii_case("gzip") && !excluded
    })
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/javascript; charset=utf-8",
    }
}

/// The routes.
pub fn routes(routes: &mut ServiceConfig) {
    routes.service(with_methods("/", &["GET", "HEAD"]).route(web::get().to(root)).route(web::head().to(root)));
    for view in VIEWS {
        routes.service(
            with_methods(view, &["GET", "HEAD"]).route(web::get().to(document)).route(web::head().to(document)),
        );
    }
    routes.service(
        with_methods("/assets/{name:.*}", &["GET", "HEAD"]).route(web::get().to(asset)).route(web::head().to(asset)),
    );
}

/// Whether `path` belongs to the web UI. Its files contain no records and need no token.
pub fn is_asset(path: &str) -> bool {
    path == "/" || VIEWS.contains(&path) || path.starts_with("/assets/")
}

async fn root(shared: web::Data<Shared>, request: HttpRequest) -> Answer {
    let accept = request.headers().get("accept").and_then(|value| value.to_str().ok()).unwrap_or_default();
    // A processor has no query API, so it answers a browser as it answers curl.
    if cfg!(feature = "ui") && accept.contains("text/html") && shared.config.role != Role::Processor {
        return document(request).await;
    }
    let answer = if elastic::is_elastic_client(request.headers()) || request.method() == actix_web::http::Method::HEAD {
        elastic::product().await
    } else {
        welcome()
    };
    answer.with_header("Vary", "Accept, Accept-Encoding, User-Agent")
}

async fn document(request: HttpRequest) -> Answer {
    file(DOCUMENT, &request).await
}

async fn asset(request: HttpRequest) -> Answer {
    file(request.match_info().query("name"), &request).await
}

async fn file(name: &str, request: &HttpRequest) -> Answer {
    match FILES.iter().find(|file| file.name == name) {
        Some(file) => file.answer(request),
        None => not_found(request.clone(), "/, /pipeline, /alerts, and the files they refer to").await,
    }
}

/// The text for clients other than browsers.
fn welcome() -> Answer {
    Answer::text(
        "text/plain; charset=utf-8",
        "logweir receives logs here, one record per line, as JSON or plain text:\n\n  \
         curl --data-binary @app.log 'http://THIS_ADDRESS/ingest?service=my-app'\n\n\
         Open this address in a browser for the log explorer.\n\
         Loki, OTLP/HTTP, Elasticsearch and Splunk HEC clients use their usual paths.\n\
         Bodies may be compressed (Content-Encoding). ?ack=received, journal or committed sets how far\n\
         records must be processed before the response. Status: GET /api/v1/status\n"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_only_to_clients_that_accept_it() {
        for (accepted, expect) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip;q=0.0, br", false),
            ("deflate", false),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(accepted), expect, "{accepted:?}");
        }
    }

    /// Without this test, only a browser would notice an imported module that is not compiled in.
    #[test]
    fn referenced_files_are_compiled_in() {
        let names: Vec<_> = FILES.iter().map(|file| file.name).collect();
        for file in FILES.iter() {
            let text = String::from_utf8_lossy(file.bytes);
            let folder = file.name.rsplit_once('/').map_or("", |(folder, _)| folder);
            for reference in text.split(['"', '\'', '`']) {
                let path = match (reference.strip_prefix("/assets/"), reference.strip_prefix("./")) {
                    (Some(path), _) => path.to_owned(),
                    (None, Some(path)) if path.ends_with(".js") => {
                        format!("{folder}/{path}").trim_matches('/').to_owned()
                    }
                    _ => continue,
                };
                assert!(names.contains(&&*path), "{} refers to {path}, which is not compiled in", file.name);
            }
        }
    }
}
