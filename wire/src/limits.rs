//! Every bound that more than one part relies on.

/// Bytes of a fixed frame header.
pub const FRAME_HEADER_BYTES: usize = 80;
/// Bytes of the largest row frame, header included: one ring slot.
pub const FRAME_BYTES_MAX: usize = 4096;
/// Columns of one section. A family with more is split into sections `name.1`, `name.2`, …
///
/// 80 header + 400 × 8 values + 400 scores + 50 validity + 3 × 8 rkyv boxes = 3,754 ≤ 4,096.
pub const SECTION_COLUMNS_MAX: usize = 400;
/// Bytes of one message on a stream (a schema, an API body, a frame).
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Labels of one series, and bytes of a label's name and value.
pub const LABELS_MAX: usize = 64;
/// Bytes of one label name or metric name.
pub const LABEL_NAME_BYTES_MAX: usize = 256;
/// Bytes of one label value.
pub const LABEL_VALUE_BYTES_MAX: usize = 4096;
/// Logical shards.
pub const SHARDS: u16 = 256;
/// Virtual nodes of one broker on the consistent-hash ring.
pub const VIRTUAL_NODES: u32 = 150;
/// Frames may claim a time this far ahead of the broker's clock.
pub const TIME_AHEAD_MAX_MS: i64 = 10 * 60 * 1000;
/// Frames may claim a time this far behind the broker's clock (spool replay).
pub const TIME_BEHIND_MAX_MS: i64 = 7 * 24 * 3600 * 1000;

const ROW_BYTES_MAX: usize =
    FRAME_HEADER_BYTES + SECTION_COLUMNS_MAX * 9 + SECTION_COLUMNS_MAX.div_ceil(8) + 3 * 8;
const _: () = assert!(ROW_BYTES_MAX <= FRAME_BYTES_MAX);
