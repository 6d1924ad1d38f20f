//! The dashboard's files, embedded by `build.rs` from `web/dist`.

/// One file.
#[derive(Debug)]
pub struct Asset {
    /// `/app.js`.
    pub path: &'static str,
    /// A hash of the body, in hexadecimal.
    pub etag: &'static str,
    /// The bytes.
    pub body: &'static [u8],
    /// The same, compressed, where the build made it.
    pub gzip: Option<&'static [u8]>,
}

include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// The file of `path`; a folder's is its `index.html`.
#[must_use]
pub fn find(path: &str) -> Option<&'static Asset> {
    let path = if path == "/" { "/index.html" } else { path };
    ASSETS.iter().find(|asset| asset.path == path).or_else(|| {
        // A view of the dashboard has no extension: the page reads the path itself.
        let view = path.starts_with("/host/") && !path.contains('.');
        (path == "/index.html").then_some(&NOT_BUILT).or_else(|| view.then(|| find("/"))?)
    })
}

/// The `Content-Type` of `path`.
#[must_use]
pub fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("json" | "webmanifest") => "application/json",
        Some("woff2") => "font/woff2",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

/// How long a browser may keep `path`: a name with its content's hash for ever, else ask again.
#[must_use]
pub fn cache_control(path: &str) -> &'static str {
    let stem = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
    let hash = stem.rsplit_once('-').map_or("", |(_, hash)| hash);
    let hashed =
        hash.len() == 8 && hash.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if hashed { "public, max-age=31536000, immutable" } else { "no-cache" }
}

static NOT_BUILT: Asset = Asset {
    path: "/index.html",
    etag: "not-built",
    body: b"<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Strobe</title>\
        <h1>The dashboard is not part of this build</h1>\
        <p>Run <code>make web</code> and build again. The API at <code>/api/v1/query</code> and the \
        stream at <code>/live</code> work.</p></html>\n",
    gzip: None,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_a_page_and_nothing_outside_the_dashboard() {
        assert!(!find("/").unwrap().body.is_empty());
        assert_eq!(find("/").unwrap().path, "/index.html");
        assert_eq!(find("/host/0123").unwrap().path, "/index.html");
        for path in ["/../Cargo.toml", "/host/../x.js", "//etc/passwd", "", "/nothing.js"] {
            assert!(find(path).is_none(), "{path}");
        }
    }

    #[test]
    fn only_hashed_names_are_kept_for_ever() {
        assert_eq!(cache_control("/chunk-7KQ2ZZ4A.js"), "public, max-age=31536000, immutable");
        for path in ["/index.html", "/app.js", "/a-b.js", "/some-longname.js"] {
            assert_eq!(cache_control(path), "no-cache", "{path}");
        }
    }
}
