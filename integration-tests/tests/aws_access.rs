//! AWS identities of whole pipes: roles that are assumed with their external ids, chains of them, sessions that end, rights that are taken
//! away and given back, and the ambient identity, which only the operator can allow. The stream is in another account and another
//! region than anything else, and is named by its ARN alone.

#![allow(clippy::print_stderr, reason = "what was said is worth reading in the log")]

#[path = "aws_access/bed.rs"]
mod bed;
#[path = "aws_access/check.rs"]
mod check;
#[path = "aws_access/roles.rs"]
mod roles;
