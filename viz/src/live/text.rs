//! The JSON texts that browsers get.

#![deny(clippy::indexing_slicing)]

use std::fmt::Write as _;
use strobe_wire::frame::{self, RowView};
use strobe_wire::schema::{Kind, Schema};
use tungstenite::Utf8Bytes;

/// Rows of the fleet table, whole or what changed.
pub(super) fn fleet(kind: &str, now_ms: i64, hosts: &str, trouble: Option<&str>) -> Utf8Bytes {
    let trouble = trouble
        .map(|why| format!(",\"trouble\":{}", serde_json::Value::from(why)))
        .unwrap_or_default();
    format!("{{\"type\":\"{kind}\",\"now_ms\":{now_ms},\"hosts\":[{hosts}]{trouble}}}").into()
}

/// The description of the chosen columns.
pub(super) fn columns(header: &frame::Header, schema: &Schema, places: &[usize]) -> Utf8Bytes {
    let columns: Vec<serde_json::Value> = places
        .iter()
        .filter_map(|place| schema.columns.get(*place))
        .map(|column| {
            let labels: serde_json::Map<String, serde_json::Value> =
                column.labels.0.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
            let kind = match column.kind {
                Kind::Counter { .. } => "counter",
                Kind::Gauge { .. } => "gauge",
                Kind::Float => "float",
            };
            serde_json::json!({ "name": column.name, "labels": labels, "kind": kind })
        })
        .collect();
    serde_json::json!({
        "type": "columns",
        "id": header.host.to_string(),
        "section": schema.section,
        "schema": header.schema.to_string(),
        "columns": columns,
    })
    .to_string()
    .into()
}

/// The chosen columns' values.
pub(super) fn row(
    header: &frame::Header,
    schema: &Schema,
    places: &[usize],
    values: RowView<'_>,
) -> Utf8Bytes {
    let mut text = String::with_capacity(160 + places.len() * 12);
    // A section's name is [a-z0-9_.] (Schema::check), so nothing here needs escaping.
    let _ = write!(
        text,
        "{{\"type\":\"row\",\"id\":\"{}\",\"section\":\"{}\",\"schema\":\"{}\",\"t\":{},\"v\":[",
        header.host,
        schema.section,
        header.schema,
        header.wall_ns.div_euclid(1_000_000)
    );
    for (index, place) in places.iter().enumerate() {
        if 0 < index {
            text.push(',');
        }
        let value = values
            .value(*place)
            .zip(schema.columns.get(*place))
            .map(|(raw, column)| column.kind.value(raw))
            .filter(|value| value.is_finite());
        match value {
            Some(value) => {
                let _ = write!(text, "{value}");
            }
            None => text.push_str("null"),
        }
    }
    text.push_str("]}");
    text.into()
}

/// A comma behind what is there.
pub(super) fn separate(list: &mut String) {
    if !list.is_empty() {
        list.push(',');
    }
}
