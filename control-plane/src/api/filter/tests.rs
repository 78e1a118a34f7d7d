//! Filters of pipes.

use millrace_proto::api::v1 as proto;

use super::*;

fn pipe() -> proto::Pipe {
    let source = proto::KinesisSource {
        stream_name: "orders-eu".to_owned(),
        use_enhanced_fan_out: true,
        ..Default::default()
    };
    proto::Pipe {
        name: "projects/default/pipes/orders".to_owned(),
        display_name: "All \"orders\" of Europe".to_owned(),
        annotations: [("team", "shop"), ("cost.center", "7")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        source: Some(proto::Source {
            kind: Some(proto::source::Kind::Kinesis(source)),
        }),
        destination: Some(proto::Destination {
            table: "orders".to_owned(),
            columns: vec![proto::Column::default()],
            ..Default::default()
        }),
        desired_state: proto::DesiredState::Running.into(),
        status: Some(proto::PipeStatus {
            state: proto::PipeState::Degraded.into(),
            ..Default::default()
        }),
        revision: 12,
        create_time: Some(prost_types::Timestamp {
            seconds: 1_790_000_000,
            nanos: 0,
        }),
        ..Default::default()
    }
}

#[track_caller]
fn check(text: &str, expected: bool) {
    let filter = Filter::parse(text, "Pipe").unwrap_or_else(|error| panic!("{text}: {}", error.message));
    assert_eq!(filter.lets_through(&pipe()).unwrap(), expected, "{text}");
}

#[test]
fn comparisons_hold_or_not() {
    for (text, expected) in [
        ("", true),
        ("  ", true),
        ("desired_state = RUNNING", true),
        ("desiredState=DESIRED_STATE_RUNNING", true),
        ("desired_state != RUNNING", false),
        ("status.state = DEGRADED", true),
        ("status.state = RUNNING OR status.state = DEGRADED", true),
        ("revision > 11 AND revision <= 12", true),
        ("revision > -1 revision < 12", false),
        ("name = \"projects/default/pipes/orders\"", true),
        ("name = projects/default/pipes/ord*", true),
        ("name = *pip*ders", true),
        ("name = \"*/invoices\"", false),
        ("name != \"*/invoices\"", true),
        ("display_name:orders", true),
        ("display_name = 'All \"orders\" of Europe'", true),
        ("display_name = \"All \\\"orders\\\" of Europe\"", true),
        ("annotations.team = shop", true),
        ("annotations.cost.center = 7", true),
        ("annotations.team:*", true),
        ("annotations:team", true),
        ("annotations:lead", false),
        // What is not set is not compared.
        ("annotations.lead != anna", false),
        ("NOT annotations.lead = anna", true),
        ("-annotations.lead = anna", true),
        ("source.kinesis.stream_name = orders-*", true),
        ("source.kinesis.use_enhanced_fan_out = true", true),
        ("source.kinesis.use_enhanced_fan_out = false", false),
        ("reconciling = false", true),
        ("create_time > 2026-01-01T00:00:00Z", true),
        ("create_time < \"2026-01-01T00:00:00Z\"", false),
        ("update_time < 2027-01-01T00:00:00Z", false),
        ("update_time:*", false),
        ("create_time:*", true),
        ("destination.columns:*", true),
        ("field_mappings:*", false),
        ("revision:*", true),
        ("(destination.table = orders)", true),
    ] {
        check(text, expected);
    }
}

#[test]
fn or_binds_closer_than_and() {
    // By the rule of AIP-160; the other way round all of them would hold.
    check("revision = 12 OR revision = 13 AND desired_state = STOPPED", false);
    check("desired_state = STOPPED AND revision = 13 OR revision = 12", false);
    check("desired_state = STOPPED AND (revision = 13 OR revision = 12)", false);
    check("(desired_state = STOPPED AND revision = 13) OR revision = 12", true);
    check("NOT (revision = 12 AND desired_state = STOPPED) name:orders", true);
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let deep = format!("{}revision=1{}", "(".repeat(40), ")".repeat(40));
    let many = vec!["revision=1"; 65].join(" OR ");
    let nots = "NOT ".repeat(500) + "revision=1";
    let long = format!("name = \"{}\"", "x".repeat(5_000));
    for (text, at, words) in [
        ("colour = red", 1, "no field \"colour\"; it has name, uid"),
        ("source.kinesis.table = x", 1, "no field \"table\""),
        ("revision = many", 12, "no whole number"),
        ("revision = 1.5", 12, "no whole number"),
        ("desired_state = FAST", 17, "RUNNING, STOPPED"),
        ("desired_state < RUNNING", 17, "= and != only"),
        ("reconciling = maybe", 15, "neither true nor false"),
        ("create_time > yesterday", 15, "no time such as"),
        ("source = kinesis", 10, "by its fields"),
        ("annotations = team", 15, "by its keys"),
        ("field_mappings = x", 18, "by `:`"),
        ("field_mappings.column = x", 1, "inside of a list"),
        ("name.length = 3", 1, "no field \"length\""),
        ("name", 5, "a comparison is missing"),
        ("name =", 7, "a value is missing"),
        ("= 3", 1, "name of a field"),
        ("name = a AND", 13, "name of a field"),
        ("AND name = a", 1, "name of a field"),
        ("(name = a", 1, "no `)`"),
        ("name = a)", 9, "no `(`"),
        ("name = \"a", 8, "does not end"),
        ("name = \"a\\n\"", 8, "`\\`"),
        ("name ! a", 6, "NOT"),
        (deep.as_str(), 18, "nests deeper"),
        (nots.as_str(), 69, "nests deeper"),
        (many.as_str(), 897, "more than 64"),
        (long.as_str(), 1, "longer than"),
    ] {
        let error = Filter::parse(text, "Pipe").unwrap_err();
        let message = &error.fields[0].description;
        assert!(
            message.starts_with(&format!("at character {at}:")) && message.contains(words),
            "{text:.60}: {message}"
        );
        assert_eq!(
            (error.reason, error.fields[0].field.as_str()),
            ("INVALID_FILTER", "filter"),
            "{text:.60}"
        );
    }
}
