//! The page for people: the explorer, the pipeline and the alerts.
//!
//! - Its files are compiled in and need no build step; they are compressed once, when first asked for.
//! - A browser keeps them and asks each time whether they are still the same (`ETag`): no file of an older version is
//!   ever mixed with those of a newer one, and that costs a 304.
//! - The policy that goes with each of them allows no script, style or connection but our own: a record's text that
//!   found its way into the page as markup could still do nothing.
//! - `/` is asked by three kinds of clients: browsers say `text/html`, Elasticsearch's clients ask which product it is,
//!   everybody else (curl) gets a few lines of text.

use std::io::Write as _;
use std::sync::LazyLock;

use actix_web::HttpRequest;
use actix_web::web::{self, ServiceConfig};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::answer::Answer;
use super::{Shared, elastic, not_found, only};
use crate::config::Role;

/// No inline script, nothing from elsewhere, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The views, all of which are the same document: which one is shown is decided in the browser.
const VIEWS: [&str; 2] = ["/pipeline", "/alerts"];

const DOCUMENT: &str = "index.html";

/// A file of the page.
struct File {
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
    gzip: Vec<u8>,
    etag: String,
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../ui/", $name)) as &[u8])),*]
    };
}

static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    let files = files![
        "index.html",
        "style.css",
        "icon.svg",
        "main.js",
        "view.js",
        "api.js",
        "state.js",
        "time.js",
        "terms.js",
        "explorer.js",
        "search.js",
        "tail.js",
        "picker.js",
        "histogram.js",
        "facets.js",
        "table.js",
        "record.js",
        "context.js",
        "export.js",
        "empty.js",
        "pipeline.js",
        "letters.js",
        "alerts.js",
        "vendor/preact.js",
        "vendor/hooks.js",
        "vendor/htm.js",
    ];
    files.into_iter().map(|(name, bytes)| File::new(name, bytes)).collect()
});

impl File {
    fn new(name: &'static str, bytes: &'static [u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        // Writing into memory does not fail; if it did, an empty vector would stand for "not compressed".
        let gzip = encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default();
        let digest = Sha256::digest(bytes);
        let etag = digest[..12].iter().fold(String::from("\""), |text, byte| text + &format!("{byte:02x}")) + "\"";
        Self { name, content_type: content_type(name), bytes, gzip, etag }
    }

    fn answer(&self, request: &HttpRequest) -> Answer {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let known = header("if-none-match").split(',').any(|tag| tag.trim().trim_start_matches("W/") == self.etag);
        let compressed = !self.gzip.is_empty() && takes_gzip(header("accept-encoding"));
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

/// Whether `gzip` is among the encodings, and not refused by a weight of nought.
fn takes_gzip(accepted: &str) -> bool {
    accepted.split(',').any(|part| {
        let (name, weight) = part.split_once(';').unwrap_or((part, ""));
        let refused = weight.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()) == Some(0.0);
        name.trim().eq_ignore_ascii_case("gzip") && !refused
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

/// Its paths.
pub fn routes(routes: &mut ServiceConfig) {
    routes.service(only("/", &["GET", "HEAD"]).route(web::get().to(root)).route(web::head().to(root)));
    for view in VIEWS {
        routes.service(only(view, &["GET", "HEAD"]).route(web::get().to(document)).route(web::head().to(document)));
    }
    routes
        .service(only("/assets/{name:.*}", &["GET", "HEAD"]).route(web::get().to(asset)).route(web::head().to(asset)));
}

/// Whether `path` is the page's: its files hold no record and need no token.
pub fn is_asset(path: &str) -> bool {
    path == "/" || VIEWS.contains(&path) || path.starts_with("/assets/")
}

async fn root(shared: web::Data<Shared>, request: HttpRequest) -> Answer {
    let accept = request.headers().get("accept").and_then(|value| value.to_str().ok()).unwrap_or_default();
    // A processor has nothing that the page could ask: it answers a browser as it answers curl.
    if accept.contains("text/html") && shared.config.role != Role::Processor {
        return document(request).await;
    }
    let answer = if elastic::is_asked(request.headers()) || request.method() == actix_web::http::Method::HEAD {
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
        None => not_found("/, /pipeline and /alerts, which name their files").await,
    }
}

/// For whoever asks without a browser.
fn welcome() -> Answer {
    Answer::text(
        "text/plain; charset=utf-8",
        "logweir takes logs here, one record per line, as JSON or as plain text:\n\n  \
         curl --data-binary @app.log 'http://THIS_ADDRESS/ingest?service=my-app'\n\n\
         Open this address in a browser to look at them.\n\
         Loki, OTLP/HTTP, Elasticsearch and Splunk HEC clients find their usual paths.\n\
         Bodies may be compressed (Content-Encoding). ?ack=received, journal or committed says how far a\n\
         record must have come before the answer. How it all is: GET /api/v1/status\n"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_whoever_takes_it() {
        for (accepted, expect) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip;q=0.0, br", false),
            ("deflate", false),
            ("", false),
        ] {
            assert_eq!(takes_gzip(accepted), expect, "{accepted:?}");
        }
    }

    /// A module that is imported and not compiled in would be missed only by the browser.
    #[test]
    fn what_the_files_name_is_there() {
        let names: Vec<_> = FILES.iter().map(|file| file.name).collect();
        for file in FILES.iter() {
            let text = String::from_utf8_lossy(file.bytes);
            let folder = file.name.rsplit_once('/').map_or("", |(folder, _)| folder);
            for named in text.split(['"', '\'', '`']) {
                let path = match (named.strip_prefix("/assets/"), named.strip_prefix("./")) {
                    (Some(path), _) => path.to_owned(),
                    (None, Some(path)) if path.ends_with(".js") => {
                        format!("{folder}/{path}").trim_matches('/').to_owned()
                    }
                    _ => continue,
                };
                assert!(names.contains(&&*path), "{} names {path}, which is not compiled in", file.name);
            }
        }
    }
}
