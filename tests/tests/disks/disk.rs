//! A file system of a test's own under a broker's state directory.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use strobe_tests::wait;

/// Mounted for as long as it is held.
pub(crate) struct Disk {
    at: PathBuf,
    /// The file that it is in; none of a tmpfs.
    image: Option<PathBuf>,
}

impl Disk {
    /// An ext4 that survives a power cut as a disk does; says loudly where that cannot be had.
    pub(crate) fn ext4(at: &Path, mib: u64) -> Option<Self> {
        let image = at.with_extension("img");
        let file = File::create(&image).expect("writable");
        file.set_len(mib << 20).expect("there is room");
        do_it("mkfs.ext4", &["-q", "-F", "-m", "0", &text(&image)]).expect("e2fsprogs is there");
        // From here on it is taken away again, mounted or not.
        let disk = Self { at: at.to_owned(), image: Some(image) };
        match disk.mount() {
            Ok(()) => Some(disk),
            Err(why) => {
                let said =
                    format!("NO LOOP DEVICE HERE, so ext4 and power cuts are NOT tested: {why}\n");
                std::io::stderr().write_all(said.as_bytes()).expect("it can be said");
                None
            }
        }
    }

    /// An ext4, or a tmpfs where no loop device can be had.
    pub(crate) fn small(at: &Path, mib: u64) -> Self {
        Self::ext4(at, mib).unwrap_or_else(|| {
            let size = format!("size={mib}m");
            do_it("mount", &["-t", "tmpfs", "-o", &size, "strobe-test", &text(at)])
                .expect("root may mount a tmpfs");
            Self { at: at.to_owned(), image: None }
        })
    }

    fn mount(&self) -> Result<(), String> {
        let image = self.image.as_deref().expect("it has one");
        do_it("mount", &["-o", "loop", &text(image), &text(&self.at)])
    }

    /// To the last byte, as another program would.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.filler()).expect("writable");
        for bytes in [1 << 20, 64 << 10, 4096, 512, 1] {
            let piece = vec![0x5A; bytes];
            loop {
                match file.write_all(&piece).and_then(|()| file.sync_data()) {
                    Ok(()) => {}
                    Err(why) if why.kind() == ErrorKind::StorageFull => break,
                    Err(why) => panic!("{}: {why}", self.at.display()),
                }
            }
        }
    }

    /// There is room again.
    pub(crate) fn clear(&self) {
        fs::remove_file(self.filler()).expect("it is there");
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    /// From now on nothing reaches it any more, and what was not synced never does: `EXT4_IOC_SHUTDOWN`
    /// without a flush of its log.
    pub(crate) fn cut_power(&self) {
        let script = r#"open(my $dir, "<", $ARGV[0]) or die $!;
            my $how = pack("L", 2);
            ioctl($dir, 0x8004587d, $how) or die $!"#;
        do_it("perl", &["-e", script, &text(&self.at)]).expect("ext4 can be shut down");
    }

    /// The power is back: nobody has a file of it open.
    pub(crate) fn turn_on(&self) {
        wait("it can be unmounted", 10, || do_it("umount", &[&text(&self.at)]).is_ok());
        self.mount().expect("it was mounted before");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever had a file open on it has ended; if not, it goes with them.
        if do_it("umount", &[&text(&self.at)]).is_err() {
            drop(do_it("umount", &["-l", &text(&self.at)]));
        }
        if let Some(image) = &self.image {
            drop(fs::remove_file(image));
        }
        drop(fs::remove_dir_all(&self.at));
    }
}

fn do_it(program: &str, arguments: &[&str]) -> Result<(), String> {
    let outcome = Command::new(program).args(arguments).output();
    let outcome = outcome.map_err(|why| format!("{program}: {why}; run scripts/setup test"))?;
    let said = String::from_utf8_lossy(&outcome.stderr).trim().to_owned();
    outcome.status.success().then_some(()).ok_or_else(|| format!("{program}: {said}"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
