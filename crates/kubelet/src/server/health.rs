//! `/healthz` and what follows from it being asked: `/metrics/slis`.
//!
//! Whoever is answered sees that the agent lives: the checks are upstream's by name, so that who asks for one of them by its
//! path is answered.

use http::{Response, StatusCode};

use super::{Body, parameter, query, text};
use crate::metrics::{Metrics, families};

const CHECKS: [&str; 3] = ["ping", "log", "syncloop"];
const KINDS: [&str; 3] = ["healthz", "livez", "readyz"];

/// The answer to a path that asks for health; none, where it asks for something else.
pub fn answer(metrics: &Metrics, uri: &http::Uri) -> Option<Response<Body>> {
    let mut parts = uri.path().trim_matches('/').splitn(2, '/');
    let kind = KINDS.into_iter().find(|k| parts.clone().next() == Some(k))?;
    parts.next();
    let wanted: Vec<&str> = match parts.next() {
        None => CHECKS.to_vec(),
        Some(one) => vec![CHECKS.into_iter().find(|c| *c == one)?],
    };
    for check in &wanted {
        metrics.count(&families::HEALTH_CHECKS, &[check, "success", kind]);
    }
    // Whatever it says: that it is there counts.
    if parameter(&query(uri), &["verbose"]).is_none() {
        return Some(text(StatusCode::OK, "ok"));
    }
    let lines: String = wanted.iter().map(|check| format!("[+]{check} ok\n")).collect();
    Some(text(StatusCode::OK, format!("{lines}{kind} check passed\n")))
}

/// `/metrics/slis`.
pub fn slis(metrics: &Metrics) -> String {
    let mut out = String::from(
        "# HELP kubernetes_healthcheck [STABLE] The outcome of the last health check of a name and type.\n# TYPE kubernetes_healthcheck gauge\n",
    );
    for check in CHECKS {
        out.push_str(&format!("kubernetes_healthcheck{{name=\"{check}\",type=\"healthz\"}} 1\n"));
    }
    out + &metrics.printed(&families::SLIS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_check_is_told_where_that_is_asked() {
        use http_body_util::BodyExt;
        for (path, expect) in [
            ("/healthz", "ok"),
            ("/healthz?verbose=", "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n"),
            ("/livez/ping?verbose", "[+]ping ok\nlivez check passed\n"),
        ] {
            let response = answer(&Metrics::default(), &path.parse().unwrap()).unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), expect, "{path}");
        }
    }

    #[test]
    fn health_is_counted() {
        let metrics = Metrics::default();
        for (path, expect) in [
            ("/healthz", true),
            ("/healthz?verbose", true),
            ("/healthz/syncloop", true),
            ("/livez", true),
            ("/healthz/nothing", false),
            ("/pods", false),
        ] {
            assert_eq!(answer(&metrics, &path.parse().unwrap()).is_some(), expect, "{path}");
        }
        let shown = slis(&metrics);
        for line in [
            "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n",
            "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2\n",
            "kubernetes_healthchecks_total{name=\"syncloop\",status=\"success\",type=\"healthz\"} 3\n",
        ] {
            assert!(shown.contains(line), "{line}: {shown}");
        }
    }
}
