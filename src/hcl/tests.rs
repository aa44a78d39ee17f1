use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Document {
    parse("test.hcl", text).unwrap()
}

fn refused(text: &str) -> String {
    parse("test.hcl", text).unwrap_err().to_string()
}

fn first(text: &str) -> Kind {
    read(text).body.entries[0].value.kind.clone()
}

fn text(value: &str) -> Kind {
    Kind::Text(value.into())
}

#[test]
fn several_attributes_stand_on_one_line_with_and_without_commas() {
    let document = read("a = 1 b = \"x\", c = true\nd = [1, 2,] , e { f = 1 g = 2 }");
    let names: Vec<_> = document.body.entries.iter().map(|entry| entry.key.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
}

#[test]
fn block_names_are_quoted_or_bare_and_labels_nest() {
    for source in ["listener tcp { a = 1 }", "\"listener\" \"tcp\" { a = 1 }", "listener \"tcp\" {\n a = 1\n}\n"] {
        let document = read(source);
        let blocks = document.reader().blocks("listener").unwrap();
        assert_eq!(blocks[0].label(), Some("tcp"), "{source}");
        assert_eq!(blocks[0].body.int("a").unwrap(), Some(1));
    }
    let document = read("a \"b\" c \"d\" { e = 1 }");
    assert_eq!(document.reader().blocks("a").unwrap()[0].more_labels.len(), 2);
}

#[test]
fn comments_of_all_kinds_are_skipped() {
    let document = read("# one\n// two\n/* three\n four */ a = /* five */ 1 // six\nb = [ # seven\n 1, // eight\n 2 ]");
    assert_eq!(document.body.entries.len(), 2);
    assert!(refused("a = 1 /* open").contains("test.hcl:1:7"));
    assert_eq!(read("/**/ a = 1").body.entries.len(), 1);
    assert!(parse("t", "/*/ a = 1").is_err());
}

#[test]
fn numbers() {
    for (source, value) in [("0", 0), ("42", 42), ("-7", -7), ("0x1F", 31), ("010", 8), ("-0x10", -16)] {
        assert_eq!(first(&format!("a = {source}")), Kind::Int(value), "{source}");
    }
    for (source, value) in [("1.5", 1.5), ("-2.5e3", -2500.0), ("1e3", 1000.0), (".5", 0.5), ("1E-2", 0.01), ("-.5", -0.5)] {
        assert_eq!(first(&format!("a = {source}")), Kind::Float(value), "{source}");
    }
    for source in ["1x", "0xZZ", "08", "99999999999999999999", "1.2.3", "1e999", "0x", "--1", "-"] {
        assert!(parse("t", &format!("a = {source}")).is_err(), "{source}");
    }
}

#[test]
fn escapes_and_interpolations() {
    assert_eq!(first(r#"a = "x\n\t\"\\\u00e9\x41\101""#), text("x\n\t\"\\éAA"));
    assert_eq!(first(r#"a = "${file("x\n")} y""#), text(r#"${file("x\n")} y"#));
    assert_eq!(first(r#"a = "{{identity.entity.id}} $ {""#), text("{{identity.entity.id}} $ {"));
    for source in [r#"a = "\q""#, r#"a = "\xff""#, r#"a = "\ud800""#, "a = \"x\ny\"", "a = \"x", "a = \"${x\""] {
        assert!(parse("t", source).is_err(), "{source}");
    }
}

#[test]
fn heredocs() {
    assert_eq!(first("a = <<EOF\nx\n  y\nEOF\n"), text("x\n  y\n"));
    assert_eq!(first("a = <<-EOF\n    x\n      y\n    EOF\n"), text("x\n  y\n"));
    assert_eq!(first("a = <<-EOF\n  x\n y\n    EOF\n"), text("  x\n y\n"));
    assert_eq!(first("a = <<EOF\r\nx\r\nEOF\r\nb = 1"), text("x\r\n"));
    assert_eq!(first("a = <<EOF\nEOF"), text(""));
    assert!(refused("a = <<EOF\nx\n").contains("write EOF alone on a line"));
    assert!(parse("t", "a = <\n").is_err());
}

#[test]
fn errors_name_file_line_column_and_fix() {
    assert_eq!(refused("a = 1\nb = yes"), "test.hcl:2:5: the value of b needs double quotes: write \"yes\"");
    assert_eq!(refused("a {\n b = 1\n"), "test.hcl:3:1: the block that begins at 1:3 is not closed: write } at its end");
    assert_eq!(refused("a \"b\" = 1"), "test.hcl:1:7: a block with a label has no '=': write a \"b\" { ... }");
    assert!(refused("}").contains("closes nothing"));
    assert!(refused("a = [1 2]").contains("expected ',' or ']'"));
    for source in ["a", "a =", "= 1", "{", "a = [", "1 = 2", "a = 1,,b = 2", "true = 1", "a = ]", "a \0"] {
        assert!(parse("t", source).is_err(), "{source:?}");
    }
}

#[test]
fn typed_readers_say_what_to_write() {
    let document = read("b = \"maybe\"\nn = true\ns = []\nl = 1\nseal = \"pkcs11\"");
    let reader = document.reader();
    assert_eq!(reader.bool("b").unwrap_err().to_string(), "test.hcl:1:5: b must be true or false, not a string: write b = true");
    assert_eq!(reader.int("n").unwrap_err().to_string(), "test.hcl:2:5: n must be a whole number, not true: write n = 10");
    assert!(reader.string("s").unwrap_err().to_string().contains("s must be a string, not a list"));
    assert!(reader.strings("l").unwrap_err().to_string().contains("write l = ["));
    assert!(reader.blocks("seal").unwrap_err().to_string().contains("write seal \"name\" { ... }"));
    assert_eq!(reader.unknown(&["b", "N", "s", "l"])[0].key.name, "seal");
}

#[test]
fn lenient_booleans_and_last_value_wins() {
    let document = read("a = 1 b = \"true\" c = \"0\" D = false d = true");
    let reader = document.reader();
    assert_eq!(reader.bool("a").unwrap(), Some(true));
    assert_eq!(reader.bool("b").unwrap(), Some(true));
    assert_eq!(reader.bool("c").unwrap(), Some(false));
    assert_eq!(reader.bool("d").unwrap(), Some(true));
    assert_eq!(reader.bool("e").unwrap(), None);
}

#[test]
fn json_objects_are_blocks_and_arrays_repeat_them() {
    let document = read(
        r#"{"listener":[{"tcp":{"address":"a"}},{"tcp":{"address":"b\u00e9\ud83d\ude00"}}],"n":null,"x":-1.5,"t":[1,null]}"#,
    );
    let blocks = document.reader().blocks("listener").unwrap();
    let addresses: Vec<_> = blocks.iter().map(|block| block.body.string("address").unwrap().unwrap()).collect();
    assert_eq!(addresses, ["a", "bé😀"]);
    assert!(document.reader().value("n").unwrap().is_none());

    let document = read(r#"{"path":{"secret/*":{"capabilities":["read"]},"sys/*":{"policy":"sudo"}}}"#);
    let labels: Vec<_> = document.reader().blocks("path").unwrap().iter().map(|block| block.label().unwrap()).collect();
    assert_eq!(labels, ["secret/*", "sys/*"]);

    let document = read(r#"{"listener":{"tcp":[{"address":"a"},{"address":"b"}]},"storage":{"inmem":{}}}"#);
    assert_eq!(document.reader().blocks("listener").unwrap().len(), 2);
    assert_eq!(document.reader().blocks("storage").unwrap()[0].label(), Some("inmem"));
}

#[test]
fn broken_json_is_refused() {
    for source in [
        "{",
        "{]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":x}",
        "{\"a\":1}x",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":-}",
        "{a:1}",
        "{\"a\":1 \"b\":2}",
    ] {
        assert!(parse("t", source).is_err(), "{source}");
    }
    assert_eq!(refused("{\n \"a\": oops}"), "test.hcl:2:7: expected a JSON value: a text needs double quotes");
}

#[test]
fn an_unlabelled_block_keeps_its_body() {
    let document = read("listener { type = \"tcp\" }\nstorage = { inmem = {} }\nempty {}");
    let reader = document.reader();
    assert_eq!(reader.blocks("listener").unwrap()[0].label(), None);
    assert_eq!(reader.blocks("storage").unwrap()[0].label(), Some("inmem"));
    assert_eq!(reader.blocks("empty").unwrap().len(), 1);
}

#[test]
fn hostile_depth_and_size_are_errors() {
    for opening in ["a {", "a = [", "a = {b", "a=[[["] {
        assert!(parse("t", &opening.repeat(100_000)).is_err());
    }
    assert!(parse("t", &format!("a = {}", "[".repeat(1_000_000))).unwrap_err().message.contains("inside each other"));
    assert!(parse("t", &"{\"a\":".repeat(100_000)).unwrap_err().message.contains("inside each other"));
    assert!(parse("t", &"#".repeat(MAX_DOCUMENT + 1)).is_err());
    assert!(parse("t", &" ".repeat(MAX_DOCUMENT)).unwrap().body.entries.is_empty());
}

/// Pieces that make a random document come close to a valid one.
const PIECES: [&str; 24] = [
    "a", "b_c-d", " ", "\n", "=", "{", "}", "[", "]", ",", "\"", "\\", "${", "<<EOF\n", "<<-X\n", "EOF\n", "0x1f", "1.5e3", "-",
    "#", "/*", "*/", "true", "\"x\"",
];

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let source = String::from_utf8_lossy(&bytes);
        let _ = parse("t", &source);
        let _ = parse("t", &format!("{{{source}"));
    }

    #[test]
    fn random_pieces_never_panic(picks in prop::collection::vec(0..PIECES.len(), 0..60)) {
        let source: String = picks.iter().map(|pick| PIECES[*pick]).collect();
        let _ = parse("t", &source);
        let _ = parse("t", &format!("{{\"a\":{source}"));
    }

    #[test]
    fn any_text_survives_json(value in "\\PC*") {
        let source = serde_json::json!({ "a": value.clone() }).to_string();
        prop_assert_eq!(first(&source), text(&value));
    }

    #[test]
    fn any_text_without_interpolation_survives_quoting(value in "[^$]*") {
        let quoted: String = value.chars().map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            '\n' => "\\n".into(),
            other => other.to_string(),
        }).collect();
        prop_assert_eq!(first(&format!("a = \"{quoted}\"")), text(&value));
    }

    #[test]
    fn integers_round_trip(value in any::<i64>()) {
        prop_assert_eq!(first(&format!("a = {value}")), Kind::Int(value));
    }
}
