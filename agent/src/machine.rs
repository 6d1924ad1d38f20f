//! What tells this machine from others: `/etc/machine-id`, and hardware that no copy of a disk takes along.
//!
//! ```text
//! board  /sys/class/dmi/id/{product_uuid,product_serial,board_serial}   read by root alone
//!        /sys/firmware/devicetree/base/serial-number
//! link   permanent addresses of links with a device                     read by anybody
//! ```
//!
//! Disks are not asked: it is they that are copied. What a maker forgot to fill in (`Default
//! string`, a UUID of zeros) tells nothing and is left out, as is an address that was made up or set.

use crate::readers::leaf::{names, text_of};
use std::fs;
use std::path::Path;

/// One machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Machine {
    /// The content of `/etc/machine-id`, if there is one.
    pub id: Option<String>,
    /// Its hardware, in the order of finding.
    pub hardware: Vec<Fact>,
}

/// One thing that its hardware says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fact {
    /// What is spoken of: only facts of one part are compared.
    pub part: Part,
    /// What it says.
    pub text: String,
}

/// A part of the hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The machine itself.
    Board,
    /// A network card.
    Link,
}

impl Machine {
    /// Reads what there is to be read, below the host's `/` and its sysfs.
    #[must_use]
    pub fn read(rootfs: &Path, sysfs: &Path) -> Self {
        let id = fs::read_to_string(rootfs.join("etc/machine-id")).ok();
        let id = id.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let mut hardware: Vec<_> =
            BOARD.iter().filter_map(|path| board(&sysfs.join(path))).collect();
        let links = sysfs.join("class/net");
        hardware.extend(names(&links).iter().filter_map(|name| link(&links.join(name))));
        hardware.truncate(FACTS_MAX);
        Self { id, hardware }
    }
}

impl Part {
    /// As it is kept.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Board => "board",
            Self::Link => "link",
        }
    }
}

fn board(path: &Path) -> Option<Fact> {
    let text = text_of(path)?.trim_matches(['\0', ' ']).to_ascii_lowercase();
    let mut letters: Vec<_> = text.bytes().filter(u8::is_ascii_alphanumeric).collect();
    letters.sort_unstable();
    letters.dedup();
    let is_filled_in = SERIAL_LETTERS_MIN <= letters.len()
        && text.bytes().any(|byte| byte.is_ascii_digit())
        && !NOBODYS.contains(&text.as_str());
    is_filled_in.then_some(Fact { part: Part::Board, text })
}

fn link(dir: &Path) -> Option<Fact> {
    if !dir.join("device").exists() {
        return None;
    }
    // A bond gives its members one address; their own is kept beside it.
    let own = text_of(&dir.join("bonding_slave/perm_hwaddr"));
    let permanent = || text_of(&dir.join("addr_assign_type")).is_some_and(|how| how == "0");
    let text = own.or_else(|| text_of(&dir.join("address")).filter(|_| permanent()))?;
    let is_any = text.bytes().any(|byte| byte.is_ascii_hexdigit() && byte != b'0');
    is_any.then_some(Fact { part: Part::Link, text })
}

const BOARD: [&str; 4] = [
    "class/dmi/id/product_uuid",
    "class/dmi/id/product_serial",
    "class/dmi/id/board_serial",
    "firmware/devicetree/base/serial-number",
];
/// Different ones, so that neither zeros nor effs are a serial number.
const SERIAL_LETTERS_MIN: usize = 3;
/// Texts that many boards have in common.
const NOBODYS: [&str; 3] = ["03000200-0400-0500-0006-000700080009", "0123456789", "123456789"];
/// Of a machine of many network cards the first ones tell enough.
const FACTS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_filled_in_or_somebody_made_up_tells_nothing() {
        let root = std::env::temp_dir().join(format!("strobe-machine-{}", std::process::id()));
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(Machine::read(&root, &root), Machine::default());
        put("etc/machine-id", "m1\n");
        put("class/dmi/id/product_uuid", "4C4C4544-0042-3510-8054-B4C04F564433\n");
        put("class/dmi/id/product_serial", "Default string\n");
        put("class/dmi/id/board_serial", "00000000\n");
        put("firmware/devicetree/base/serial-number", "10000000abcd1234\0");
        for (name, how, address) in [
            ("eth0", "0", "02:fc:00:00:00:05"),
            ("eth1", "3", "02:fc:00:00:00:06"),
            ("eth2", "0", "00:00:00:00:00:00"),
            ("eth3", "1", "02:fc:00:00:00:09"),
            ("veth", "0", "02:fc:00:00:00:07"),
        ] {
            put(&format!("class/net/{name}/addr_assign_type"), how);
            put(&format!("class/net/{name}/address"), address);
            if name != "veth" {
                put(&format!("class/net/{name}/device/uevent"), "");
            }
        }
        put("class/net/eth1/bonding_slave/perm_hwaddr", "02:fc:00:00:00:08\n");
        let found = Machine::read(&root, &root);
        let texts: Vec<_> =
            found.hardware.iter().map(|fact| (fact.part.word(), fact.text.as_str())).collect();
        let wanted = [
            ("board", "4c4c4544-0042-3510-8054-b4c04f564433"),
            ("board", "10000000abcd1234"),
            ("link", "02:fc:00:00:00:05"),
            ("link", "02:fc:00:00:00:08"),
        ];
        assert_eq!((found.id.as_deref(), &*texts), (Some("m1"), &wanted[..]));
        fs::remove_dir_all(&root).unwrap();
    }
}
