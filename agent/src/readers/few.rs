//! The few lines of a long list that are wanted, each from a file of its own.
//!
//! The kernel prints all of /proc/diskstats, eight loop devices and every partition, for the one disk
//! that is looked at: 15.0 µs a reading where the disk's own file in sysfs takes 8.9 (`strobe-agent --costs`). What is
//! read from there is put together as the lines of the list, so nobody behind it knows the difference.

use super::text::lines;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// See above.
#[derive(Debug)]
pub(crate) struct Few {
    folder: PathBuf,
    head: Head,
    own: Vec<Own>,
    /// Readings to one of the list, and those until the next.
    list_reads: u32,
    rest: u32,
}

/// What stands before a wanted line's numbers, and the name of whose they are.
type Head = fn(&[u8]) -> Option<(&[u8], &[u8])>;

#[derive(Debug)]
struct Own {
    head: Box<[u8]>,
    file: File,
}

impl Few {
    pub(crate) fn new(folder: PathBuf, list_reads: u32, head: Head) -> Self {
        Self { folder, head, own: Vec::new(), list_reads, rest: 0 }
    }

    /// Lines as the list would have them, at the start of `bytes`; how long they are. `None`: the list is to
    /// be read, because it is time, or because of one that is gone.
    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> Option<usize> {
        if self.own.is_empty() {
            return None;
        }
        self.rest = self.rest.checked_sub(1)?;
        let mut length = 0;
        for own in &self.own {
            let room = bytes.get_mut(length..).unwrap_or(&mut []);
            let Some(line) = own.read(room) else {
                self.own.clear();
                return None;
            };
            length += line;
        }
        Some(length)
    }

    /// The list was read. Where there are no files of their own it is looked at as seldom as where there are.
    pub(crate) fn learn(&mut self, list: &[u8]) {
        if self.own.is_empty()
            && let Some(rest) = self.rest.checked_sub(1)
        {
            self.rest = rest;
            return;
        }
        self.rest = self.list_reads;
        let wanted = || lines(list).filter_map(self.head);
        let known = self.own.iter().map(|own| &*own.head);
        if wanted().map(|(head, _)| head).eq(known) {
            return;
        }
        self.own.clear();
        let (count, all) = (wanted().count(), lines(list).count());
        if FEW_MAX < count || all < GAIN * count {
            return;
        }
        let open = |(head, name): (&[u8], &[u8])| {
            // A name is a file's name there (`kobject_set_name_vargs`).
            let name = str::from_utf8(name).ok()?.replace('/', "!");
            let file = File::open(self.folder.join(name).join("stat")).ok()?;
            Some(Own { head: head.into(), file })
        };
        self.own = wanted().map(open).collect::<Option<_>>().unwrap_or_default();
    }
}

impl Own {
    /// The line's length.
    fn read(&self, bytes: &mut [u8]) -> Option<usize> {
        let (line, _) = bytes.split_at_mut_checked(LINE_BYTES_MAX)?;
        let (head, rest) = line.split_at_mut_checked(self.head.len())?;
        head.copy_from_slice(&self.head);
        let (blank, rest) = rest.split_first_mut()?;
        *blank = b' ';
        let taken = self.file.read_at(rest, 0).ok()?;
        // Without an end it is longer than any.
        let last = taken.checked_sub(1).and_then(|last| rest.get(last));
        (last == Some(&b'\n')).then_some(self.head.len() + 1 + taken)
    }
}

/// So many lines of the list cost as much as a file of sysfs, or more.
const GAIN: usize = 3;
const FEW_MAX: usize = 16;
/// Of a line, its head and end included.
const LINE_BYTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use crate::readers::disk;
    use crate::readers::kept::Buffer;
    use std::fs;
    use std::path::PathBuf;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("strobe-few-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }

        /// The list has what nobody looks at, and these with a number; sysfs has them with the next.
        fn disks(&self, names: &[(&str, u64)]) {
            fs::create_dir_all(&self.0).unwrap();
            let mut list: String = (0..12).map(|n| format!("   7 {n:7} loop{n} 0 0\n")).collect();
            for (at, (name, reads)) in names.iter().enumerate() {
                list += &format!(" 253 {at:7} {name} {reads} 2 3\n");
                let dir = self.0.join("class/block").join(name.replace('/', "!"));
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join("stat"), format!("  {}  2  3\n", reads + 1)).unwrap();
            }
            fs::write(self.0.join("diskstats"), list).unwrap();
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn few_are_read_from_their_own_files_and_the_list_now_and_then() {
        let tree = Tree::new("few");
        tree.disks(&[("vda", 10), ("cciss/c0d0", 20)]);
        let (mut kept, mut buffer) = (disk::kept(&tree.0, &tree.0, 3), Buffer::new());
        let mut read = || {
            let text = String::from_utf8(kept.read(&mut buffer).unwrap().to_vec()).unwrap();
            let wanted = text.lines().filter(|line| !line.contains("loop"));
            let words =
                wanted.map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
            words.collect::<Vec<_>>().join(", ")
        };
        let list = "253 0 vda 10 2 3, 253 1 cciss/c0d0 20 2 3";
        let own = "253 0 vda 11 2 3, 253 1 cciss/c0d0 21 2 3";
        assert_eq!(read(), list);
        assert_eq!([read(), read(), read()], [own; 3]);
        assert_eq!(read(), list, "a fourth time the list, which may have others");
        // One that was cut off is gone: the list says what there is.
        fs::write(tree.0.join("class/block/vda/stat"), "").unwrap();
        assert_eq!(read(), list);
        fs::write(tree.0.join("class/block/vda/stat"), "11 2 3\n").unwrap();
        assert_eq!(
            [read(), read(), read()],
            [list, list, own],
            "its file is tried again as seldom"
        );
        // Another disk is seen with the next list.
        tree.disks(&[("vda", 10), ("cciss/c0d0", 20), ("sda", 30)]);
        let found: Vec<_> = (0..4).map(|_| read().split(", ").count()).collect();
        assert_eq!(found, [2, 2, 3, 3]);
        assert!(read().ends_with("253 2 sda 31 2 3"));
    }

    #[test]
    fn many_or_nameless_ones_are_read_from_the_list() {
        let tree = Tree::new("many");
        for names in [
            &[("vda", 1), ("vdb", 1), ("vdc", 1), ("vdd", 1), ("vde", 1), ("vdf", 1), ("vdg", 1)][..],
            &[("vda", 1)],
        ] {
            tree.disks(names);
            let _ = fs::remove_dir_all(tree.0.join("class/block/vda"));
            let (mut kept, mut buffer) = (disk::kept(&tree.0, &tree.0, 9), Buffer::new());
            for _ in 0..5 {
                let lines = kept.read(&mut buffer).unwrap().split(|byte| *byte == b'\n').count();
                assert_eq!(lines, 13 + names.len());
            }
        }
    }

    /// A real kernel's two ways to say the same.
    #[test]
    fn sysfs_says_what_the_list_says() {
        let (mut kept, mut buffer) =
            (disk::kept("/proc".as_ref(), "/sys".as_ref(), 1), Buffer::new());
        let mut disks = || {
            let mut sheet = crate::readers::sheet::Sheet::new(crate::readers::sheet::Vanish::Go);
            sheet.begin();
            disk::parse(kept.read(&mut buffer).unwrap(), &mut sheet);
            let of = |entry: &crate::readers::sheet::Entry| (entry.key.clone(), entry.count);
            sheet.entries().iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(disks(), disks());
    }
}
