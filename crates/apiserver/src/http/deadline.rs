//! How long a request may take: what it asks for in its query, at most upstream's `--request-timeout`.
//!
//! Watches and streams take as long as they take, and have a `timeoutSeconds` of their own.

use std::future::Future;
use std::time::Duration;

use meta::{Status, Verb};

use super::route::{Route, pairs};

/// What a request may take at most, and takes where it does not say, unless configured.
const LONGEST: Duration = Duration::from_secs(60);

/// The time allowed, or none for what has no end by itself. Zero and less ask for the longest; a text that is no duration
/// of Go's is refused.
pub fn allowed(route: &Route, query: &str, longest: Option<Duration>) -> Result<Option<Duration>, Status> {
    let longest = longest.unwrap_or(LONGEST);
    match route {
        Route::Connect(_) => return Ok(None),
        Route::Resource(request) if request.verb == Verb::Watch => return Ok(None),
        _ => {}
    }
    // Hardly anybody asks.
    if !query.contains("timeout=") {
        return Ok(Some(longest));
    }
    let asked = pairs(query).find(|(key, _)| key == "timeout").map(|(_, value)| value).filter(|v| !v.is_empty());
    let Some(asked) = asked else { return Ok(Some(longest)) };
    let nanos = meta::time::parse_duration(&asked).ok_or_else(|| {
        let why = format!("invalid timeout specified in the request URL - time: invalid duration {asked:?}");
        Status::bad_request(why)
    })?;
    let asked = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    Ok(Some(asked).filter(|asked| !asked.is_zero()).map(|asked| asked.min(longest)).or(Some(longest)))
}

/// Answers in the time allowed, or says that it was not enough. What was asked may still be done.
pub async fn kept<T>(
    allowed: Option<Duration>,
    answer: impl Future<Output = Result<T, Status>> + Unpin,
) -> Result<T, Status> {
    let Some(allowed) = allowed else { return answer.await };
    match tokio::time::timeout(allowed, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            let why = "Timeout: request did not complete within requested timeout - context deadline exceeded";
            Err(Status::timeout(why, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::super::route;
    use super::*;

    #[test]
    fn times_allowed() {
        let seconds = |n| Ok(Some(Duration::from_secs(n)));
        for (path, query, expect) in [
            ("/version", "", seconds(60)),
            ("/version", "timeout=3m", seconds(60)),
            ("/version", "timeout=0s", seconds(60)),
            ("/api/v1/pods", "limit=1&timeout=5s", seconds(5)),
            ("/api/v1/pods", "timeout=", seconds(60)),
            ("/api/v1/pods", "timeout=-1s", seconds(60)),
            ("/api/v1/pods", "watch=1&timeout=5s", Ok(None)),
            (
                "/version",
                "timeout=invalid",
                Err("invalid timeout specified in the request URL - time: invalid duration \"invalid\""),
            ),
        ] {
            let route = route::parse(&Method::GET, path, query).expect("a route");
            let got = allowed(&route, query, None).map_err(|status| status.message);
            assert_eq!(got, expect.map_err(Into::into), "{path}?{query}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_longer_is_not_waited_for() {
        let slow = Box::pin(async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok(())
        });
        let status = kept(Some(Duration::from_secs(2)), slow).await.expect_err("a timeout");
        assert_eq!((status.code, status.reason), (504, meta::Reason::Timeout));
    }
}
