//! Filters of listings: the part of AIP-160 that says something of a resource's fields.
//!
//! ```text
//!   expression  = factor { ["AND"] factor }          OR binds closer than AND, as AIP-160 has it
//!   factor      = term { "OR" term }
//!   term        = ["NOT" | "-"] ( "(" expression ")" | restriction )
//!   restriction = field ("=" | "!=" | "<" | "<=" | ">" | ">=" | ":") value
//! ```
//!
//! A field is a path of names with dots, through messages and into maps of text. What is compared with a field that is not set does
//! not hold, whatever the comparison. Fields and values are checked against the message's descriptor before anything is looked at.

mod parse;
mod test;

use millrace_common::error::ApiError;
use millrace_proto::DESCRIPTOR_POOL;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use tonic::Code;

use self::test::Test;

/// Reason of refusals.
const INVALID_FILTER: &str = "INVALID_FILTER";

/// What to show of a listing.
#[derive(Debug)]
pub(super) struct Filter {
    root: Option<Node>,
    /// The kind of message that is listed.
    of: MessageDescriptor,
}

#[derive(Debug)]
enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    Test(Test),
}

impl Filter {
    /// The filter of a request for messages of this kind, such as `Pipe`; an empty one lets everything through.
    pub(super) fn parse(text: &str, of: &str) -> Result<Self, ApiError> {
        let of = DESCRIPTOR_POOL
            .get_message_by_name(&format!("millrace.api.v1.{of}"))
            .ok_or_else(|| ApiError::new(Code::Internal, "INTERNAL", "a kind of message got lost"))?;
        match parse::parse(text, &of) {
            Ok(root) => Ok(Self { root, of }),
            Err(parse::Error { at, what }) => {
                let what = format!("at character {}: {what}", at + 1);
                Err(ApiError::invalid_field("filter", what).with_reason(INVALID_FILTER))
            }
        }
    }

    /// Whether everything goes through.
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Whether a message goes through.
    ///
    /// # Errors
    /// If it is no message of the kind that the filter was made for.
    pub(super) fn lets_through(&self, message: &impl prost::Message) -> Result<bool, ApiError> {
        let Some(root) = &self.root else { return Ok(true) };
        let message = DynamicMessage::decode(self.of.clone(), message.encode_to_vec().as_slice())
            .map_err(|error| ApiError::internal(&error))?;
        Ok(root.holds(&message))
    }
}

impl Node {
    fn holds(&self, message: &DynamicMessage) -> bool {
        match self {
            Node::All(nodes) => nodes.iter().all(|node| node.holds(message)),
            Node::Any(nodes) => nodes.iter().any(|node| node.holds(message)),
            Node::Not(node) => !node.holds(message),
            Node::Test(test) => test.holds(message),
        }
    }
}

#[cfg(test)]
mod tests;
