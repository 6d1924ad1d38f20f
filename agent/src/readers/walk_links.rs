//! Walks for network links: what /sys/class/net says of each, and bonds.

use super::leaf::{Found, Read, Spec, names, text_of};
use super::{COUNTER, GAUGE, Roots, column};

/// Every link. More than the budget of columns are left out whole and counted.
pub(crate) fn netclass(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("class/net");
    for device in names(&base) {
        let dir = base.join(&device);
        // Thousands of links come and go with containers: what has no room is not looked at.
        if found.is_full() {
            found.refused += u64::try_from(LINK.len() + LINK_SELDOM.len()).unwrap_or(0) + 2;
            continue;
        }
        if !dir.is_dir() {
            continue;
        }
        let labels = [("device", &*device)];
        // lo says `unknown` and is not up, as node_exporter has it.
        let up = column("node_network_up", &labels, GAUGE);
        found.leaf(dir.join("operstate"), Read::Is("up"), up);
        found.object(&dir, LINK, &labels);
        found.seldom(|found| {
            found.object(&dir, LINK_SELDOM, &labels);
            let texts = ["address", "broadcast", "duplex", "operstate", "ifalias"];
            let texts = texts.map(|name| (name, dir.join(name)));
            found.info("node_network_info", &labels, &texts);
        });
    }
}

/// How many links a bond has and how many of them work.
pub(crate) fn bonding(roots: &Roots, found: &mut Found) {
    let base = roots.sysfs.join("class/net");
    let masters = text_of(&base.join("bonding_masters")).unwrap_or_default();
    for master in masters.split_whitespace() {
        let dir = base.join(master);
        let slaves = text_of(&dir.join("bonding/slaves")).unwrap_or_default();
        let states = slaves.split_whitespace().map(|slave| {
            // Kernels before 3.13 say `slave_`.
            let state = |prefix: &str| {
                dir.join(format!("{prefix}_{slave}")).join("bonding_slave/mii_status")
            };
            Some(state("lower")).filter(|path| path.exists()).unwrap_or_else(|| state("slave"))
        });
        let labels = [("master", master)];
        let active = column("node_bonding_active", &labels, GAUGE);
        found.sum(states.collect(), Read::Is("up"), active);
        let count = column("node_bonding_slaves", &labels, GAUGE);
        found.leaf(dir.join("bonding/slaves"), Read::Words, count);
    }
}

/// `speed` is in Mbit/s, -1 where the driver does not know.
const LINK: &[Spec] = &[
    Spec("carrier", "node_network_carrier", GAUGE, Read::Level(1)),
    Spec("carrier_changes", "node_network_carrier_changes_total", COUNTER, Read::Whole(1)),
    Spec("carrier_up_count", "node_network_carrier_up_changes_total", COUNTER, Read::Whole(1)),
    Spec("carrier_down_count", "node_network_carrier_down_changes_total", COUNTER, Read::Whole(1)),
    Spec("dormant", "node_network_dormant", GAUGE, Read::Level(1)),
    Spec("flags", "node_network_flags", GAUGE, Read::Level(1)),
    Spec("speed", "node_network_speed_bytes", GAUGE, Read::Level(125_000)),
    Spec(
        "statistics/rx_nohandler",
        "node_network_receive_nohandler_total",
        COUNTER,
        Read::Whole(1),
    ),
];
/// What only people change.
const LINK_SELDOM: &[Spec] = &[
    Spec("addr_assign_type", "node_network_address_assign_type", GAUGE, Read::Level(1)),
    Spec("dev_id", "node_network_device_id", GAUGE, Read::Level(1)),
    Spec("ifindex", "node_network_iface_id", GAUGE, Read::Level(1)),
    Spec("iflink", "node_network_iface_link", GAUGE, Read::Level(1)),
    Spec("link_mode", "node_network_iface_link_mode", GAUGE, Read::Level(1)),
    Spec("mtu", "node_network_mtu_bytes", GAUGE, Read::Level(1)),
    Spec("name_assign_type", "node_network_name_assign_type", GAUGE, Read::Level(1)),
    Spec("netdev_group", "node_network_net_dev_group", GAUGE, Read::Level(1)),
    Spec("tx_queue_len", "node_network_transmit_queue_length", GAUGE, Read::Level(1)),
    Spec("type", "node_network_protocol_type", GAUGE, Read::Level(1)),
];
