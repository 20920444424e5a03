//! `/logs/?query=`: the logs of services and files of the node, picked by time, number and pattern.
//!
//! A service is looked up in the journal where that knows its unit, else among files: `NAME`, `NAME.log`,
//! `NAME/NAME.log` below the log directory. What is asked is checked before anything is run; the words of the refusals are
//! upstream's.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use http::{Response, StatusCode};
use jiff::Timestamp;
use tokio::process::Command;

use super::{Body, full, text};

/// The journal's program may take this long.
const WITHIN: Duration = Duration::from_secs(30);
/// Bytes of an answer; what is beyond is cut off.
const MAX_ANSWER: usize = 16 << 20;
const MAX_TAIL: i64 = 100_000;
const MAX_SERVICE: usize = 256;
const MAX_SERVICES: usize = 4;

/// What is asked for.
#[derive(Debug, Default, PartialEq)]
struct Query {
    services: Vec<String>,
    files: Vec<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tail: Option<i64>,
    boot: Option<i64>,
    pattern: String,
}

fn invalid(field: &str, value: &str, why: &str) -> String {
    format!("{field}: Invalid value: \"{value}\": {why}")
}

impl Query {
    /// `None`: it asks for no logs of services but for files as `/logs` always served them.
    fn parse(query: &[(String, String)]) -> Result<Option<Self>, Vec<String>> {
        let (mut out, mut wrong) = (Self::default(), Vec::new());
        let named: Vec<&str> = query.iter().filter(|(k, _)| k == "query").map(|(_, v)| v.as_str()).collect();
        for one in &named {
            if one.contains(['/', '\\']) {
                out.files.push(one.to_string());
            } else if !one.trim().is_empty() {
                out.services.push(one.to_string());
            }
        }
        if !named.is_empty() && out.files.is_empty() && out.services.is_empty() {
            wrong.push(invalid("query", &named.join(","), "query cannot be empty"));
        }
        let value =
            |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty());
        for (name, place) in [("sinceTime", &mut out.since), ("untilTime", &mut out.until)] {
            match value(name).map(str::parse) {
                None => {}
                Some(Ok(time)) => *place = Some(time),
                Some(Err(_)) => wrong.push(invalid(name, value(name).unwrap_or_default(), "invalid time format")),
            }
        }
        for (name, place) in [("boot", &mut out.boot), ("tailLines", &mut out.tail)] {
            match value(name).map(str::parse) {
                None => {}
                Some(Ok(number)) => *place = Some(number),
                Some(Err(_)) => wrong.push(invalid(name, value(name).unwrap_or_default(), "invalid syntax")),
            }
        }
        out.pattern = value("pattern").unwrap_or_default().to_string();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Some(out).filter(|q| *q != Self::default()))
    }

    fn has_options(&self) -> bool {
        self.since.is_some()
            || self.until.is_some()
            || self.tail.is_some()
            || self.boot.is_some()
            || !self.pattern.is_empty()
    }

    /// What is wrong with it.
    fn faults(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for service in &self.services {
            let safe = |c: char| c.is_ascii_alphanumeric() || "-_@".contains(c);
            if service.len() > MAX_SERVICE {
                wrong.push(invalid("query", service, "length must be less than 100"));
            } else if !service.chars().all(safe) {
                wrong.push(invalid("query", service, "input contains unsupported characters"));
            }
        }
        if self.services.len() > MAX_SERVICES {
            wrong.push(format!("query: Too many: {}: must have at most {MAX_SERVICES} items", self.services.len()));
        }
        match (self.files.len(), self.services.len()) {
            (0, 0) => wrong.push("query: Required value: cannot be empty with options".into()),
            (1.., 1..) => {
                let both = format!("{:?}, {:?}", self.files, self.services);
                wrong.push(invalid("query", &both, "cannot specify a file and service"));
            }
            (2.., _) => wrong.push(invalid("query", &self.files.join(","), "cannot specify more than one file")),
            (1, _) if self.has_options() => {
                wrong.push(invalid("query", &self.files.join(","), "cannot specify file with options"))
            }
            _ => {}
        }
        if let (Some(since), Some(until)) = (self.since, self.until)
            && since > until
        {
            wrong.push(invalid("untilTime", &until.to_string(), "must be after `sinceTime`"));
        }
        if let Some(boot) = self.boot.filter(|b| *b > 0) {
            wrong.push(invalid("boot", &boot.to_string(), "must be less than 1"));
        }
        if let Some(tail) = self.tail.filter(|t| !(0..=MAX_TAIL).contains(t)) {
            wrong.push(invalid("tailLines", &tail.to_string(), "must be between 0 and 100000, inclusive"));
        }
        wrong
    }

    /// The journal's program's words.
    fn arguments(&self, services: &[&str]) -> Vec<String> {
        let time = |t: Timestamp| t.strftime("%Y-%m-%d %H:%M:%S").to_string();
        let mut out: Vec<String> = ["--utc", "--no-pager", "--output=short-precise"].map(str::to_string).into();
        out.extend(self.since.map(|t| format!("--since={}", time(t))));
        out.extend(self.until.map(|t| format!("--until={}", time(t))));
        out.extend(self.tail.map(|n| format!("--lines={n}")));
        out.extend(services.iter().map(|s| format!("--unit={s}")));
        if !self.pattern.is_empty() {
            out.extend([format!("--grep={}", self.pattern), "--case-sensitive=false".into()]);
        }
        out.push(format!("--boot={}", self.boot.unwrap_or(0)));
        out
    }
}

async fn journal(arguments: &[String]) -> Option<Vec<u8>> {
    let mut command = Command::new("journalctl");
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    Some(tokio::time::timeout(WITHIN, command.output()).await.ok()?.ok()?.stdout)
}

/// A file below the directory, wherever links lead.
fn below(root: &Path, name: &str) -> Option<PathBuf> {
    let root = root.canonicalize().ok()?;
    let path = root.join(name.trim_start_matches(['/', '\\'])).canonicalize().ok()?;
    (path.starts_with(&root) && path.is_file()).then_some(path)
}

/// The answer, if the request is such a query.
pub async fn serve(root: &Path, query: &[(String, String)]) -> Option<Response<Body>> {
    let refused = |wrong: Vec<String>| {
        let shown = if wrong.len() == 1 { wrong.join("") } else { format!("[{}]", wrong.join(", ")) };
        text(StatusCode::BAD_REQUEST, shown)
    };
    let query = match Query::parse(query) {
        Ok(None) => return None,
        Ok(Some(query)) => query,
        Err(wrong) => return Some(refused(wrong)),
    };
    let wrong = query.faults();
    if !wrong.is_empty() {
        return Some(refused(wrong));
    }
    if let Some(file) = query.files.first() {
        let Some(path) = below(root, file) else {
            return Some(refused(vec![invalid("query", file, "no such file or directory")]));
        };
        return Some(super::files::logs(
            root,
            &[&path.strip_prefix(root.canonicalize().ok()?).ok()?.to_string_lossy()],
        ));
    }
    let units = journal(&["--field".into(), "_SYSTEMD_UNIT".into()]).await.unwrap_or_default();
    let units = String::from_utf8_lossy(&units).into_owned();
    let known = |service: &&str| units.lines().any(|unit| unit.trim_end_matches(".service") == *service);
    let (native, others): (Vec<&str>, Vec<&str>) = query.services.iter().map(String::as_str).partition(known);
    let mut out = Vec::new();
    if !native.is_empty() {
        match journal(&query.arguments(&native)).await {
            Some(text) => out.extend(text),
            None => out.extend(b"\nerror: journal output not available\n"),
        }
    }
    if !others.is_empty() && query.has_options() {
        let names = others.join(" ");
        out.extend(
            format!(
                "\noptions present and query resolved to log files for [{names}]\ntry without specifying options\n"
            )
            .bytes(),
        );
    } else {
        for service in others {
            let names = [service.to_string(), format!("{service}.log"), format!("{service}/{service}.log")];
            match names.iter().find_map(|name| below(root, name)).map(std::fs::read) {
                Some(Ok(bytes)) => out.extend(bytes),
                Some(Err(error)) => out.extend(format!("\nerror getting log for {service}: {error}\n").bytes()),
                None => out.extend(format!("\nlog not found for {service}\n").bytes()),
            }
        }
    }
    out.truncate(MAX_ANSWER);
    let mut response = Response::new(full(out));
    let kind = http::HeaderValue::from_static("text/plain;charset=UTF-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Option<Query>, Vec<String>> {
        Query::parse(&super::super::query(&format!("/logs/?{text}").parse().unwrap()))
    }

    #[test]
    fn what_is_asked() {
        for (text, expect) in [
            ("", "nothing"),
            ("query=kubelet", "--utc --no-pager --output=short-precise --unit=kubelet --boot=0"),
            (
                "query=a&query=b&tailLines=5&boot=-1",
                "--utc --no-pager --output=short-precise --lines=5 --unit=a --unit=b --boot=-1",
            ),
            (
                "query=a&sinceTime=2024-01-02T03:04:05Z&pattern=x",
                "--utc --no-pager --output=short-precise --since=2024-01-02 03:04:05 --unit=a --grep=x --case-sensitive=false --boot=0",
            ),
            ("query=%20", "query: Invalid value: \" \": query cannot be empty"),
            ("tailLines=3", "query: Required value: cannot be empty with options"),
            ("query=a;b", "query: Invalid value: \"a;b\": input contains unsupported characters"),
            ("query=a&boot=1", "boot: Invalid value: \"1\": must be less than 1"),
            ("query=a&tailLines=x", "tailLines: Invalid value: \"x\": invalid syntax"),
            (
                "query=a&tailLines=100001",
                "tailLines: Invalid value: \"100001\": must be between 0 and 100000, inclusive",
            ),
            ("query=a&sinceTime=now", "sinceTime: Invalid value: \"now\": invalid time format"),
            ("query=/a&query=b", "query: Invalid value: \"[\"/a\"], [\"b\"]\": cannot specify a file and service"),
            ("query=/a&tailLines=1", "query: Invalid value: \"/a\": cannot specify file with options"),
        ] {
            let shown = match parsed(text) {
                Ok(None) => "nothing".to_string(),
                Ok(Some(query)) => match query.faults() {
                    none if none.is_empty() => {
                        query.arguments(&query.services.iter().map(String::as_str).collect::<Vec<_>>()).join(" ")
                    }
                    wrong => wrong.join(", "),
                },
                Err(wrong) => wrong.join(", "),
            };
            assert_eq!(shown, expect, "{text}");
        }
    }

    #[tokio::test]
    async fn files_stand_in_for_the_journal() {
        use http_body_util::BodyExt;
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("some-svc")).unwrap();
        std::fs::write(root.path().join("some-svc/some-svc.log"), "deep\n").unwrap();
        std::fs::write(root.path().join("other-svc.log"), "flat\n").unwrap();
        for (text, expect) in [
            ("query=some-svc", "deep\n"),
            ("query=other-svc&query=no-such-svc", "flat\n\nlog not found for no-such-svc\n"),
            ("query=/other-svc.log", "flat\n"),
            ("query=/../etc/passwd", "query: Invalid value: \"/../etc/passwd\": no such file or directory"),
            (
                "query=some-svc&tailLines=1",
                "\noptions present and query resolved to log files for [some-svc]\ntry without specifying options\n",
            ),
        ] {
            let query = super::super::query(&format!("/logs/?{text}").parse().unwrap());
            let response = serve(root.path(), &query).await.unwrap();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(String::from_utf8_lossy(&body), expect, "{text}");
        }
    }
}
