//! The API over a small store: statuses, shapes, and both ways to send parameters.

use super::*;
use crate::query::Pulse;
use crate::store::{Store, StoreConfig, Writer};
use std::sync::atomic::{AtomicU64, Ordering};

fn open(name: &str) -> (Engine, Writer, std::path::PathBuf) {
    let dir = std::env::temp_dir().join(format!("strobe-api-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (store, mut writer, _) = Store::open(StoreConfig::at(dir.clone()), NOW_MS).unwrap();
    let labels = |name: &str, instance: &str| {
        let pairs = [("__name__", name), ("instance", instance), ("job", "node")];
        strobe_wire::schema::Labels(
            pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).into_iter().collect(),
        )
    };
    let series = [("a", 1.5), ("b", 0.25)].map(|(instance, value)| RemoteSeries {
        labels: labels("up", instance),
        samples: vec![(NOW_MS - 1000, value)],
    });
    writer.samples(&series).unwrap();
    writer.commit(NOW_MS).unwrap();
    (Engine::new(store), writer, dir)
}

fn ask(engine: &Engine, method: &str, path: &str, params: &str) -> (u16, String) {
    let mut request =
        ApiRequest { method: method.to_owned(), path: path.to_owned(), ..ApiRequest::default() };
    if method == "POST" {
        request.content_type = "application/x-www-form-urlencoded; charset=utf-8".to_owned();
        request.body = params.as_bytes().to_vec();
    } else {
        request.query = params.to_owned();
    }
    match handle(engine, &Limits::usual(), &request, NOW_MS, Deadline::never()) {
        Answer::Response(response) => (response.status, String::from_utf8(response.body).unwrap()),
        Answer::Write(series) => (0, format!("{} series", series.len())),
    }
}

/// A page of charts: one grid for all terms, holes where nothing is known, in one answer.
#[test]
fn history_stands_on_one_grid() {
    let (engine, mut writer, dir) = open("history");
    let labels = [("__name__", "node_x"), ("instance", "a"), ("job", "node"), ("device", "sda")];
    let labels = labels.map(|(a, b)| (a.to_owned(), b.to_owned()));
    let labels = strobe_wire::schema::Labels(labels.into_iter().collect());
    let at = |second: i64| NOW_MS - 10_000 + second * 1000;
    let samples = [0, 1, 2, 6].map(|second: i32| (at(second.into()), f64::from(second) * 1.5));
    writer.samples(&[RemoteSeries { labels, samples: samples.to_vec() }]).unwrap();
    writer.commit(NOW_MS).unwrap();
    let post = |body: String| {
        let request =
            ApiRequest { method: "POST".into(), body: body.into_bytes(), ..ApiRequest::default() };
        let host = |id| {
            let hello = strobe_wire::message::Hello {
                instance: "a".into(),
                job: "node".into(),
                interval_ms: 1000,
                ..strobe_wire::message::Hello::default()
            };
            (id == HostId(7)).then(|| HostInfo { hello, ..HostInfo::default() })
        };
        let how = (NOW_MS, Deadline::never());
        let answer = history(&engine, &Limits::usual(), &request, host, how);
        (answer.status, String::from_utf8(answer.body).unwrap())
    };
    let (host, from, to) = (HostId(7), at(0), at(8));
    let terms = r#"[{"metric":"node_x","how":"rate","agg":"sum","by":"device"},
        {"metric":"node_x","how":"value","agg":"max","where":{"label":"device","pattern":"s.*"}},
        {"metric":"node_y","how":"value","agg":"sum"}]"#;
    let (status, body) = post(format!(
        r#"{{"host":"{host}","from_ms":{from},"to_ms":{to},"pixels":100,"terms":{terms}}}"#
    ));
    let wanted = format!(
        r#"{{"status":"success","data":{{"from":{from},"step":1000,"count":9,"interval_ms":1000,"terms":[{{"sda":[null,1.5,1.5,1.5,1.5,null,null,null,null]}},{{"":[0,0.75,1.5,1.5,2.25,3,9,9,9]}},{{}}]}}}}"#
    );
    assert_eq!((status, body.as_str()), (200, wanted.as_str()));
    for (body, status, why) in [
        (
            r#"{"host":"00000000000000000000000000000008","range_ms":60000,"pixels":1,"terms":[]}"#,
            404,
            "no host 0",
        ),
        (r#"{"host":"08","range_ms":60000,"pixels":1,"terms":[]}"#, 400, "32 hexadecimal"),
        (r#"{"range_ms":60000,"pixels":1,"terms":[],"x":1}"#, 400, "unknown field"),
        (r#"{"range_ms":-5,"pixels":1,"terms":[]}"#, 400, "no time in it"),
        (
            r#"{"range_ms":5000,"pixels":1,"terms":[{"metric":"a b","how":"rate","agg":"sum"}]}"#,
            400,
            "no name",
        ),
    ] {
        let said = post(body.to_owned());
        assert!(said.0 == status && said.1.contains(why), "{body}: {said:?}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn answers_have_prometheus_shapes() {
    let (engine, _writer, dir) = open("shapes");
    let check = |path: &str, params: &str, wanted: &str| {
        for method in ["GET", "POST"] {
            let (status, body) = ask(&engine, method, path, params);
            assert_eq!((status, body.as_str()), (200, wanted), "{method} {path} {params}");
        }
    };
    check(
        "/api/v1/query",
        "query=up%7Binstance%3D%22a%22%7D",
        r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{"__name__":"up","instance":"a","job":"node"},"value":[1700000000,"1.5"]}]}}"#,
    );
    check(
        "/api/v1/query",
        "query=1/0&time=5.5",
        r#"{"status":"success","data":{"resultType":"scalar","result":[5.500,"+Inf"]}}"#,
    );
    check(
        "/api/v1/query_range",
        "query=sum(up)&start=1699999999&end=1700000000&step=1s",
        r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[1699999999,"1.75"],[1700000000,"1.75"]]}]}}"#,
    );
    check("/api/v1/labels", "", r#"{"status":"success","data":["__name__","instance","job"]}"#);
    check(
        "/api/v1/series",
        "match[]=up{instance=\"b\"}&match[]=nope",
        r#"{"status":"success","data":[{"__name__":"up","instance":"b","job":"node"}]}"#,
    );
    check("/api/v1/format_query", "query=sum( up )", r#"{"status":"success","data":"sum(up)"}"#);
    let (status, body) = ask(&engine, "GET", "/api/v1/label/instance/values", "match[]=up");
    assert_eq!((status, body.as_str()), (200, r#"{"status":"success","data":["a","b"]}"#));
    let (status, body) = ask(&engine, "GET", "/api/v1/metadata", "metric=node_load1");
    assert_eq!(status, 200);
    assert!(body.contains(r#"{"node_load1":[{"type":"gauge","help":"#), "{body}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn errors_have_prometheus_statuses() {
    let (engine, _writer, dir) = open("errors");
    let check = |path: &str, params: &str, wanted: (u16, &str, &str)| {
        let (status, body) = ask(&engine, "GET", path, params);
        let kind = format!(r#"{{"status":"error","errorType":"{}","error":""#, wanted.1);
        assert_eq!(status, wanted.0, "{path} {params}: {body}");
        assert!(body.starts_with(&kind) && body.contains(wanted.2), "{body}");
    };
    let (query, range) = ("/api/v1/query", "/api/v1/query_range");
    check(query, "", (400, "bad_data", "query"));
    check(query, "query=sum(up", (400, "bad_data", "1:4: parse error"));
    check(query, "query=up&time=x", (400, "bad_data", "time"));
    check(query, "query=%zz", (400, "bad_data", "percent"));
    check(query, "query=up+%2B+on(job)+up", (422, "execution", "duplicate series"));
    check(query, "query=histogram_count(up)", (422, "execution", "not supported"));
    check(query, "query=sum(info(up))", (422, "execution", "the function info() is not supported"));
    check(query, "query=up&lookback_delta=1m", (422, "execution", "not supported"));
    check(range, "query=up&start=2&end=1&step=1", (400, "bad_data", "before start"));
    check(range, "query=up&start=1&end=2&step=0", (400, "bad_data", "zero or negative"));
    check(range, "query=up&start=1&end=20000&step=1", (400, "bad_data", "11000 points"));
    check(range, "query=up[5m]&start=1&end=2&step=1", (400, "bad_data", "expression type"));
    check("/api/v1/series", "", (400, "bad_data", "match[]"));
    check("/api/v1/nope", "", (404, "not_found", "/api/v1/nope"));
    check("/api/v1/label/a-b/values", "", (400, "bad_data", "label name"));
    let (status, _) = ask(&engine, "DELETE", query, "query=up");
    assert_eq!(status, 405);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn remote_write_is_handed_on() {
    let (engine, _writer, dir) = open("write");
    let body = remote_write::encode(&[RemoteSeries {
        labels: strobe_wire::schema::Labels(vec![("__name__".to_owned(), "x".to_owned())]),
        samples: vec![(NOW_MS, 2.0), (1, 2.0)],
    }]);
    let mut request = ApiRequest {
        method: "POST".to_owned(),
        path: "/api/v1/write".to_owned(),
        content_encoding: "snappy".to_owned(),
        body,
        ..ApiRequest::default()
    };
    let got = handle(&engine, &Limits::usual(), &request, NOW_MS, Deadline::never());
    assert!(matches!(got, Answer::Write(series) if series[0].samples == [(NOW_MS, 2.0)]));
    assert_eq!(engine.store().counts().samples_refused, 1);
    request.body.truncate(3);
    let Answer::Response(response) =
        handle(&engine, &Limits::usual(), &request, NOW_MS, Deadline::never())
    else {
        panic!("a torn body was taken");
    };
    assert_eq!(response.status, 400);
    assert_eq!(written(Ok(())).status, 204);
    std::fs::remove_dir_all(dir).unwrap();
}

/// The deepest trees the bounds allow must fit a thread's 2 MiB stack, in every walk of them.
#[test]
fn deep_queries_do_not_overflow_the_stack() {
    let (engine, _writer, dir) = open("deep");
    let nested = format!("{}up{}", "(".repeat(98), ")".repeat(98));
    let minus = format!("{}up", "-".repeat(98));
    let chain = vec!["up"; 98].join(" or ");
    let calls = format!("{}up{}", "abs(".repeat(98), ")".repeat(98));
    for query in [nested, minus, chain, calls] {
        for path in ["/api/v1/query", "/api/v1/format_query"] {
            let (status, body) = ask(&engine, "POST", path, &format!("query={query}"));
            assert_eq!(status, 200, "{path}: {body}");
        }
    }
    for (open, close) in [("(", ")"), ("-", ""), ("abs(", ")"), ("up or ", "")] {
        let query = format!("query={}up{}", open.repeat(245), close.repeat(245));
        let (status, body) = ask(&engine, "POST", "/api/v1/query", &query);
        assert!(status == 400 && body.contains("100 levels"), "{open}: {status} {body}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// Every loop that can be made long stops soon after its time is over, and says so.
#[test]
fn a_query_ends_with_its_time() {
    let (engine, _writer, dir) = open("deadline");
    let ask = |query: &str, timeout: &str, pulse: &(dyn Fn() -> Pulse + Sync)| {
        let request = ApiRequest {
            method: "GET".to_owned(),
            path: "/api/v1/query_range".to_owned(),
            query: format!("query={query}&start=1699989000&end=1700000000&step=1{timeout}"),
            ..ApiRequest::default()
        };
        let deadline = Deadline::new(pulse, 50);
        match handle(&engine, &Limits::usual(), &request, NOW_MS, deadline) {
            Answer::Response(answer) => (answer.status, String::from_utf8(answer.body).unwrap()),
            Answer::Write(_) => panic!("a write"),
        }
    };
    let many = "label_replace(vector(1),\"a\",\"1\",\"\",\"\")";
    let mut wide = format!("({many}+or+vector(1)+or+up)");
    for _ in 0..2 {
        wide = format!("({wide}+or+{wide})");
    }
    for query in [
        "sum_over_time(vector(1)[4h:1s])".to_owned(),
        "quantile_over_time(0.5,vector(1)[1h:1s])".to_owned(),
        "count_values(\"v\",vector(time()%25300))".to_owned(),
        format!("topk(1,{wide})"),
        format!("quantile(0.5,{wide})"),
        format!("sum({wide})"),
        format!("{wide}*on(job)group_left+up"),
    ] {
        let pulses = AtomicU64::new(0);
        // Each look at the clock finds 20 ms gone.
        let slow = || Pulse::Elapsed(20 * pulses.fetch_add(1, Ordering::Relaxed));
        let (status, body) = ask(&query.replace('"', "%22"), "", &slow);
        let looks = pulses.load(Ordering::Relaxed);
        assert!(status == 503 && body.contains(r#""errorType":"timeout""#), "{query}: {body}");
        assert!(body.contains("time_ms_max") && looks == 4, "{query}: {looks} looks, {body}");
    }
    let at_20 = || Pulse::Elapsed(20);
    assert_eq!(ask("up", "", &at_20).0, 200);
    assert_eq!(ask("up", "&timeout=21ms", &at_20).0, 200);
    let (status, body) = ask("up", "&timeout=0.02", &at_20);
    assert!(status == 503 && body.contains("after 20 ms"), "{body}");
    // Not more than the limit, whatever is asked.
    assert_eq!(ask("up", "&timeout=1h", &|| Pulse::Elapsed(50)).0, 503);
    let (status, body) = ask("up", "&timeout=soon", &at_20);
    assert!(status == 400 && body.contains("timeout"), "{body}");
    let (status, body) = ask("up", "", &|| Pulse::Abandoned);
    assert!(status == 503 && body.contains("canceled"), "{body}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn limits_are_named() {
    let (engine, _writer, dir) = open("limits");
    let check = |limits: &Limits, query: &str, wanted: &str| {
        let request = ApiRequest {
            method: "GET".to_owned(),
            path: "/api/v1/query_range".to_owned(),
            query: format!("query={query}&start=1699999990&end=1700000000&step=1"),
            ..ApiRequest::default()
        };
        let answer = handle(&engine, limits, &request, NOW_MS, Deadline::never());
        let Answer::Response(answer) = answer else { panic!("a write") };
        let body = String::from_utf8(answer.body).unwrap();
        assert!(answer.status != 200 && body.contains(wanted), "{wanted}: {body}");
    };
    let usual = Limits::usual();
    check(&Limits { steps_max: 9, ..usual }, "up", "steps_max");
    check(&Limits { series_max: 1, ..usual }, "up", "series_max is 1");
    check(&Limits { samples_max: 1, ..usual }, "up", "samples_max is 1");
    check(&Limits { values_max: 21, ..usual }, "up", "values_max is 21");
    let count = "count_values(%22v%22,vector(time()))";
    check(&Limits { values_max: 120, ..usual }, count, "values_max is 120");
    check(&Limits { output_bytes_max: 100, ..usual }, "up", "output_bytes_max is 100");
    std::fs::remove_dir_all(dir).unwrap();
}

const NOW_MS: i64 = 1_700_000_000_000;
