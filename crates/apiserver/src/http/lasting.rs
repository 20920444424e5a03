//! What lives as long as an answer: the count of those that go on, the audit log's trail.
//!
//! It travels in the request's extensions to whoever joins streams, and with the body of an answer otherwise.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;

use super::Body;

/// Let go when the answer is over.
#[derive(Clone, Default)]
pub struct Lasting(Vec<Arc<dyn Any + Send + Sync>>);

impl Lasting {
    pub fn with(mut self, more: Option<Arc<dyn Any + Send + Sync>>) -> Self {
        self.0.extend(more);
        self
    }

    /// The body, and all this with it.
    pub fn held_by(self, body: Body) -> Body {
        if self.0.is_empty() { body } else { Held { body, _lasting: self }.boxed_unsync() }
    }
}

struct Held {
    body: Body,
    _lasting: Lasting,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
