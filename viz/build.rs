//! Embeds every file of `web/dist`. Where the dashboard was not built, one page says so.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?);
    let dist = root.join("web/dist");
    println!("cargo::rerun-if-changed={}", dist.display());
    println!("cargo::rerun-if-changed=build.rs");
    let mut files = Vec::new();
    if dist.is_dir() {
        collect(&dist, &mut files)?;
    }
    files.sort();
    let mut code = String::from("pub(crate) static ASSETS: &[Asset] = &[\n");
    for file in &files {
        if file.extension().is_some_and(|e| e == "gz" || e == "map") {
            continue;
        }
        println!("cargo::rerun-if-changed={}", file.display());
        let gzip = PathBuf::from(format!("{}.gz", file.display()));
        let gzip = files.contains(&gzip).then_some(gzip);
        entry(&mut code, &dist, file, gzip.as_deref())?;
    }
    code.push_str("];\n");
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?);
    fs::write(out.join("assets.rs"), code)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn entry(code: &mut String, dist: &Path, file: &Path, gzip: Option<&Path>) -> io::Result<()> {
    let name = file.strip_prefix(dist).map_err(io::Error::other)?;
    let body = fs::read(file)?;
    // FNV-1a: names a content, guards nothing.
    let hash = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let gzip = gzip.map_or_else(
        || "None".to_owned(),
        |path| format!("Some(include_bytes!({:?}))", path.display().to_string()),
    );
    writeln!(
        code,
        "    Asset {{ path: {:?}, etag: \"{hash:016x}\", body: include_bytes!({:?}), gzip: {gzip} }},",
        format!("/{}", name.display()),
        file.display().to_string(),
    )
    .map_err(io::Error::other)
}
