//! Expressions and what comes of them.

use serde_json::json;

use super::*;
use crate::functions::time::timestamp_text;

fn text(value: &Value<'_>) -> String {
    match value {
        Value::Timestamp(t) => timestamp_text(*t),
        Value::Optional(None) => "none".into(),
        Value::Optional(Some(inner)) => format!("some({})", text(inner)),
        Value::Type(name) => name.to_string(),
        other => other.to_json().map_or_else(|e| format!("error: {e}"), |j| j.to_string()),
    }
}

fn run(expression: &str) -> String {
    let data = json!({"i": 7, "s": "text", "l": [3, 1, 2], "m": {"a": 1, "b-c": 2}, "d": 1.5, "o": {"p": {"q": "r"}}});
    let env = Env::new(&NoStructs).var("x", Type::Dyn);
    let program = match env.compile(expression) {
        Ok(program) => program,
        Err(issues) => return issues.to_string(),
    };
    let vars = [("x", Value::json(&data))];
    let (value, cost) = program.eval(&&vars[..], PER_CALL_LIMIT);
    assert!(cost <= PER_CALL_LIMIT || value == Err(Error::CostLimit));
    match value {
        Ok(value) => text(&value),
        Err(why) => format!("error: {why}"),
    }
}

fn check(cases: &[(&str, &str)]) {
    for (expression, expect) in cases {
        assert_eq!(run(expression), *expect, "{expression}");
    }
}

#[test]
fn operators() {
    check(&[
        ("1 + 2 * 3 - 4 / 2 % 3", "5"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9223372036854775807 + 1", "error: integer overflow"),
        ("1 / 0", "error: division by zero"),
        ("'a' + 'b' + \"c\" + r'\\n' + '''d'''", "\"abc\\\\nd\""),
        ("b'ab' + b'\\x00'", "\"YWIA\""),
        ("[1, 2] + [3]", "[1,2,3]"),
        ("1 < 2 && 2.0 >= 1 && 1u < 2 && 'a' < 'b'", "true"),
        ("dyn(1) == 1.0 && dyn(1u) == 1", "true"),
        ("false && 1 / 0 > 0", "false"),
        ("1 / 0 > 0 && false", "false"),
        ("true || 1 / 0 > 0", "true"),
        ("1 / 0 > 0 || false", "error: division by zero"),
        ("true ? 1 : 2", "1"),
        ("2 in [1, 2] && 'a' in {'a': 1} && !(3 in [1])", "true"),
        ("{'a': 1}.a + {'b': 2}['b']", "3"),
        ("[1, 2][5]", "error: index out of bounds: 5"),
        ("{'a': 1}['b']", "error: no such key: b"),
        ("x.o.p.q", "\"r\""),
        ("x.nothing", "error: no such key: nothing"),
        ("has(x.o.p) && !has(x.o.z)", "true"),
        ("x.m['b-c']", "2"),
        ("x.i + 1", "8"),
        ("x.i + 'a'", "error: no such overload: _+_(int, string)"),
        ("!!true && --3 == 3", "true"),
        ("0x1F + 1", "32"),
        ("1.5e3", "1500.0"),
        ("type(1) == int && type('') == string && type(x.l) == list && type(null) == null_type", "true"),
        ("size('héé') + size([1]) + size({'a': 1}) + 'ab'.size()", "7"),
        ("string(1.0) + string(1e21) + string(true) + string(b'x')", "\"11e+21truex\""),
        ("int('42') + int(3.9) + int(4u)", "49"),
        ("double('1.5') + double(1)", "2.5"),
        ("uint(3)", "3"),
        ("bool('true')", "true"),
        ("bytes('a')", "\"YQ==\""),
    ]);
}

#[test]
fn macros() {
    check(&[
        ("x.l.all(i, i > 0)", "true"),
        ("x.l.exists(i, i == 2)", "true"),
        ("x.l.exists_one(i, i > 1)", "false"),
        ("x.l.map(i, i * 2)", "[6,2,4]"),
        ("x.l.map(i, i > 1, i * 2)", "[6,4]"),
        ("x.l.filter(i, i > 1)", "[3,2]"),
        ("x.m.all(k, k.size() > 0)", "true"),
        ("x.m.map(k, k)", "[\"a\",\"b-c\"]"),
        ("[1, 0].all(i, 1 / i > 5)", "false"),
        ("[0, 1].exists(i, 1 / i == 1)", "true"),
        ("x.l.all(n, i, n < 3 && i < 4)", "true"),
        ("x.l.exists(n, i, n == 0 && i == 3)", "true"),
        ("x.l.existsOne(n, i, i == 3)", "true"),
        ("x.l.transformList(n, i, n + i)", "[3,2,4]"),
        ("x.m.transformList(k, v, v > 1, k)", "[\"b-c\"]"),
        ("x.m.transformMap(k, v, v + 1)", "{\"a\":2,\"b-c\":3}"),
        ("['a', 'b'].transformMapEntry(i, v, {v: i})", "{\"a\":0,\"b\":1}"),
        ("[1, 2].map(a, [3, 4].map(b, a * b))", "[[3,4],[6,8]]"),
    ]);
}

#[test]
fn optionals() {
    check(&[
        ("x.?o.?p.q.orValue('z')", "\"r\""),
        ("x.?none.?p.orValue('z')", "\"z\""),
        ("x.l[?0].hasValue() && !x.l[?9].hasValue()", "true"),
        ("optional.of(1).optMap(v, v + 1).value()", "2"),
        ("optional.none().optMap(v, v + 1)", "none"),
        ("optional.of(1).optFlatMap(v, optional.of(v + 4))", "some(5)"),
        ("optional.ofNonZeroValue('').or(optional.of('b'))", "some(\"b\")"),
        ("[?optional.of(1), ?optional.none(), 3]", "[1,3]"),
        ("{?'a': optional.none(), 'b': 2}", "{\"b\":2}"),
        ("optional.none().value()", "error: optional.none() dereference"),
        ("[optional.of(1), optional.none()].unwrapOpt()", "[1]"),
    ]);
}

#[test]
fn strings_and_lists() {
    check(&[
        (
            "'tacocat'.charAt(1) + 'hello'.substring(1, 3) + 'A'.lowerAscii() + 'a'.upperAscii() + ' x '.trim()",
            "\"aelaAx\"",
        ),
        ("'hello mellow'.indexOf('ello', 2) + 'hello'.lastIndexOf('l')", "10"),
        ("'a,b,c'.split(',', 2)", "[\"a\",\"b,c\"]"),
        ("'abc'.split('')", "[\"a\",\"b\",\"c\"]"),
        ("['a', 'b'].join('-') + 'aaa'.replace('a', 'b', 2)", "\"a-bbba\""),
        ("'%s %d %.2f %x %b %e %%'.format([dyn('a'), 5, 1.5, 255, 5, 1234.5])", "\"a 5 1.50 ff 101 1.234500e+03 %\""),
        ("'%s'.format([[dyn(1), 'a', {'k': null}]])", "\"[1, a, {k: null}]\""),
        ("strings.quote('a\"b')", "\"\\\"a\\\\\\\"b\\\"\""),
        ("'abc'.substring(4)", "error: index out of range: 4"),
        ("'abc 123'.matches('^[a-z]+ \\\\d+$') && 'x1y22'.find('[0-9]+') == '1'", "true"),
        ("'x1y22'.findAll('[0-9]+', 1) + 'x1y22'.findAll('[0-9]+')", "[\"1\",\"1\",\"22\"]"),
        ("[1, 2, 2].isSorted() && [3, 1].max() == 3 && [3, 1].min() == 1 && [1, 2].sum() == 3", "true"),
        ("[1, 2, 1].indexOf(1) + [1, 2, 1].lastIndexOf(1)", "2"),
        (
            "[1, 2, 2].distinct() + [3, 1].sort() + [1, 2].reverse() + lists.range(2) + [1, 2, 3].slice(1, 2)",
            "[1,2,1,3,2,1,0,1,2]",
        ),
        ("[[1], [2, 3]].flatten()", "[1,2,3]"),
        ("[{'n': 2}, {'n': 1}].sortBy(e, e.n)", "[{\"n\":1},{\"n\":2}]"),
        ("sets.contains([1, 2], [2]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 1], [1])", "true"),
        ("[1, 2].includes(2)", "true"),
    ]);
}

#[test]
fn kubernetes_libraries() {
    check(&[
        (
            "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('50k').add(20).sub(quantity('10')).asInteger() == 50010",
            "true",
        ),
        ("quantity('1.5').isInteger() || isQuantity('x') || quantity('2').compareTo(quantity('2')) != 0", "false"),
        ("quantity('200M') == quantity('0.2G')", "true"),
        (
            "url('https://u@[::1]:80/a b?k=v&k=w#f').getHostname() + url('https://example.com:80/').getPort()",
            "\"::180\"",
        ),
        ("url('https://e.com/p?k=a+b&k=%20').getQuery()", "{\"k\":[\"a b\",\" \"]}"),
        ("isURL('/path') && !isURL('a/b')", "true"),
        (
            "ip('192.168.0.1').family() == 4 && ip.isCanonical('::1') && !ip.isCanonical('::0001') && !isIP('1.2.3')",
            "true",
        ),
        ("string(ip('::1')) + string(cidr('10.0.0.1/8').masked())", "\"::110.0.0.0/8\""),
        (
            "cidr('10.0.0.0/8').containsIP('10.9.9.9') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && cidr('10.0.0.0/8').prefixLength() == 8",
            "true",
        ),
        (
            "ip('127.0.0.1').isLoopback() && ip('8.8.8.8').isGlobalUnicast() && ip('224.0.0.1').isLinkLocalMulticast()",
            "true",
        ),
        (
            "semver('1.2.3-a.1').isLessThan(semver('1.2.3')) && semver('v01.1', true).major() == 1 && !isSemver('v1.0.0')",
            "true",
        ),
        ("semver('1.02.3')", "error: Minor number must not contain leading zeroes \"02\""),
        ("!format.dns1123Label().validate('abc').hasValue()", "true"),
        ("format.named('uuid').value().validate('x').value()", "[\"does not match the UUID format\"]"),
        ("duration('1h30m').getMinutes() + timestamp('2023-01-02T03:04:05Z').getHours()", "93"),
        ("timestamp('2023-01-02T03:04:05Z') + duration('24h')", "2023-01-03T03:04:05Z"),
        ("string(timestamp('2023-01-02T00:00:00Z') - timestamp('2023-01-01T00:00:00Z'))", "\"86400s\""),
        ("timestamp('2023-01-02T03:04:05Z').getHours('-02:00')", "1"),
    ]);
}

#[test]
fn complaints_are_clients_to_read() {
    check(&[
        ("y.z", "ERROR: <input>:1:1: undeclared reference to 'y' (in container '')\n | y.z\n | ^"),
        (
            "1 + 'a'",
            "ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a'\n | ..^",
        ),
        (
            "'a'.size(1)",
            "ERROR: <input>:1:9: found no matching overload for 'size' applied to 'string.(int)'\n | 'a'.size(1)\n | ........^",
        ),
        ("nope(1)", "ERROR: <input>:1:5: undeclared reference to 'nope' (in container '')\n | nope(1)\n | ....^"),
        ("[1, 'a']", "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
        (
            "1.all(x, true)",
            "ERROR: <input>:1:1: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | 1.all(x, true)\n | ^",
        ),
        ("has(x)", "ERROR: <input>:1:5: invalid argument to has() macro\n | has(x)\n | ....^"),
        ("'a'.b", "ERROR: <input>:1:4: type 'string' does not support field selection\n | 'a'.b\n | ...^"),
        ("'a'.matches('[')", "ERROR: <input>:1:13: invalid matches argument\n | 'a'.matches('[')\n | ............^"),
        (
            "x.namespace == 'a' && namespace",
            "ERROR: <input>:1:23: reserved identifier: namespace\n | x.namespace == 'a' && namespace\n | ......................^",
        ),
        (
            "cel.bind(a, 1, a)",
            "ERROR: <input>:1:1: undeclared reference to 'cel' (in container '')\n | cel.bind(a, 1, a)\n | ^\nERROR: <input>:1:9: undeclared reference to 'bind' (in container '')\n | cel.bind(a, 1, a)\n | ........^\nERROR: <input>:1:10: undeclared reference to 'a' (in container '')\n | cel.bind(a, 1, a)\n | .........^\nERROR: <input>:1:16: undeclared reference to 'a' (in container '')\n | cel.bind(a, 1, a)\n | ...............^",
        ),
    ]);
    assert!(run("1 +").contains("Syntax error: mismatched input '<EOF>' expecting {'['"));
    assert!(run("1 2").contains("Syntax error: extraneous input '2' expecting <EOF>"));
}

#[test]
fn costs_stop_what_runs_away() {
    let many = format!("[{}]", vec!["0"; 200].join(","));
    let nested = format!("{many}.all(a, {many}.all(b, {many}.all(c, a == b && b == c)))");
    assert_eq!(run(&nested), "error: operation cancelled: actual cost limit exceeded");
    let doubled = "['aaaaaaaaaa']".to_string() + &".map(s, s + s)".repeat(40) + ".size() > 0";
    let said = run(&doubled);
    assert!(said.starts_with("error: "), "{said}");
    let deep = "(".repeat(300) + "1" + &")".repeat(300);
    assert!(run(&deep).contains("expression recursion limit exceeded: 100"));
    let long = vec!["1"; 300].join(" + ");
    assert!(run(&long).contains("expression recursion limit exceeded: 250"));
    let wide = vec!["true"; 3000].join(" && ");
    assert_eq!(run(&wide), "true");
    let copies = "optional.of(1)".to_string() + &".optMap(v, v)".repeat(40);
    assert!(run(&copies).contains("nodes"));
}

/// The stack of a server's thread is enough for the deepest expression there may be.
#[test]
fn the_deepest_expression_fits_a_thread() {
    let body = || {
        assert_eq!(run(&("(1+".repeat(90) + "1" + &")".repeat(90))), "91");
        let nested = "x.l.all(a, ".repeat(60) + "true" + &")".repeat(60);
        assert!(matches!(&*run(&nested), "true" | "error: operation cancelled: actual cost limit exceeded"));
        assert!(!run(&("[".repeat(100) + "1" + &"]".repeat(100) + " == [2] ? 1 : 2")).is_empty());
        for (open, close) in
            [("(", ")"), ("(1+", ")"), ("[", "]"), ("!(", ")"), ("x.l.all(a, ", ")"), ("size([", "])"), ("1+-(", ")")]
        {
            for depth in [50, 80, 120, 249, 400] {
                run(&(open.repeat(depth) + "1" + &close.repeat(depth)));
            }
        }
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(body).unwrap().join().unwrap();
}

#[test]
fn declared_data() {
    let schema = json!({"type": "object", "required": ["n"], "properties": {
        "n": {"type": "integer"}, "s": {"type": "string", "maxLength": 10}, "t": {"type": "string", "format": "date-time"},
        "u": {"type": "string", "format": "duration"}, "b": {"type": "string", "format": "byte"}, "namespace": {"type": "string"},
        "a-b": {"type": "number"}, "e": {"x-kubernetes-int-or-string": true},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}, "maxItems": 5},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "m": {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3}}});
    let data = json!({"metadata": {"name": "it"}, "n": 3, "s": "abc", "t": "2023-01-02T03:04:05Z", "u": "1h", "b": "YQ==",
        "namespace": "ns", "a-b": 2, "e": "5%", "set": ["a", "b"], "m": {"k": 1}, "free": {"x": 1}});
    let decl = Decl::of(&schema, true, "self").unwrap();
    let structs = Structs::of([&*decl]);
    let env = Env::new(&structs).var("self", decl.ty());
    for (expression, expect) in [
        ("self.n == 3 && self.metadata.name == 'it'", "true"),
        ("self.t.getFullYear() == 2023 && self.u == duration('60m') && self.b == b'a'", "true"),
        ("self.__namespace__ + string(self.a__dash__b)", "\"ns2\""),
        ("type(self.e) == string && self.e.matches('%$')", "true"),
        ("self.set == ['b', 'a']", "true"),
        ("self.set + ['b', 'c']", "[\"a\",\"b\",\"c\"]"),
        ("has(self.m.k) && self.m.all(k, self.m[k] == 1)", "true"),
        ("self.nope", "ERROR: <input>:1:5: undefined field 'nope'\n | self.nope\n | ....^"),
        ("self.free.x", "ERROR: <input>:1:10: undefined field 'x'\n | self.free.x\n | .........^"),
        (
            "self.n + 1.0",
            "ERROR: <input>:1:8: found no matching overload for '_+_' applied to '(int, double)'\n | self.n + 1.0\n | .......^",
        ),
    ] {
        let said = match env.compile(expression) {
            Ok(program) => {
                let vars = [("self", Value::of(&data, &decl).unwrap())];
                program.eval(&&vars[..], PER_CALL_LIMIT).0.map_or_else(|e| format!("error: {e}"), |v| text(&v))
            }
            Err(issues) => issues.to_string(),
        };
        assert_eq!(said, expect, "{expression}");
    }
    for (expression, most) in [
        ("self.n == 3", 2),
        ("self.n > 3 && self.s == 'abc'", 6),
        ("self.s.startsWith('abc')", 3),
        ("has(self.s)", 1),
        ("self.set.all(s, s == 'a')", 2 + 5 * (2 + 1 + 2) + 1),
        ("self.s.matches('a{3}b')", 2 + 5 * 2),
        ("self.m.map(k, k).size() > 0", 0),
    ] {
        let cost = env.compile(expression).unwrap().estimate(Some(&decl));
        if most > 0 {
            assert_eq!(cost.max, most, "{expression}");
        }
    }
}

/// Whatever is written, compiling and running end, and soon.
#[test]
fn random_texts_never_panic() {
    let words = [
        "x",
        "x.l",
        "x.m",
        "1",
        "2u",
        "'a'",
        "1.5",
        "true",
        "null",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        ".",
        ",",
        ":",
        "?",
        "+",
        "-",
        "*",
        "/",
        "%",
        "==",
        "<",
        "in",
        "&&",
        "||",
        "!",
        "all",
        "map",
        "has",
        "i",
        "size",
        "optional",
        "of",
        "quantity",
        "ip",
        "matches",
        "'['",
        "format",
        "'%d'",
        "duration",
        "'1h'",
        "b'\\x41'",
        "r'''",
        "\"",
        "e",
        "\\",
        "é",
        "replace",
        "0x",
        ".?",
        "[?",
        "transformMap",
        "sortBy",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let shapes = [
        "A + A",
        "A.all(i, A)",
        "A == A",
        "[A, A]",
        "{A: A}",
        "A ? A : A",
        "A.map(i, A)",
        "has(A.s)",
        "A[A]",
        "A && A",
        "size(A)",
        "A.?s.orValue(A)",
        "A.filter(i, i == A)",
        "string(A)",
        "A in A",
        "(A)",
        "-A",
        "A.replace(A, A)",
        "A.format([A])",
        "A.transformMap(k, v, A)",
    ];
    let leaves = [
        "x",
        "x.i",
        "x.s",
        "x.l",
        "x.m",
        "i",
        "1",
        "'t'",
        "1.5",
        "true",
        "null",
        "optional.of(1)",
        "duration('1s')",
        "b'a'",
    ];
    for round in 0..6000 {
        let expression = if round % 2 == 0 {
            (0..next(14)).map(|_| words[next(words.len())]).collect::<Vec<_>>().join(if next(2) == 0 {
                " "
            } else {
                ""
            })
        } else {
            let mut expression = "A".to_string();
            for _ in 0..next(10) {
                expression = expression.replacen('A', shapes[next(shapes.len())], 1);
            }
            while expression.contains('A') {
                expression = expression.replacen('A', leaves[next(leaves.len())], 1);
            }
            expression
        };
        run(&expression);
    }
}
