//! Requests that carry an id: noted in the transaction that carries them out, so that one that is sent again is answered and not
//! carried out again.
//!
//! A row holds a hash of the request and what was answered. Both are sealed: requests and answers may hold secrets.

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter as _,
    sea_query::{Expr, OnConflict},
};
use std::sync::Arc;
use ulid::Ulid;
use zeroize::Zeroizing;

use super::{Error, Store, entity::request, transaction::write};

/// How long a request is remembered.
pub(super) const KEPT_MILLIS: i64 = 24 * 3_600 * 1_000;
/// Longest answer that is kept, in bytes.
const MAX_ANSWER_BYTES: usize = 256 << 10;
/// Bytes of a hash.
const DIGEST_LEN: usize = 32;

/// A request with an id, as it arrived this time.
#[derive(Debug, Clone)]
pub struct RequestMark {
    caller: String,
    method: &'static str,
    id: String,
    attempt: String,
    digest: [u8; DIGEST_LEN],
}

impl RequestMark {
    /// A request `id` of `caller` to `method`, whose bytes have the SHA-256 `digest`.
    #[must_use]
    pub fn new(caller: String, method: &'static str, id: String, digest: [u8; DIGEST_LEN]) -> Self {
        Self {
            caller,
            method,
            id,
            attempt: Ulid::new().to_string(),
            digest,
        }
    }

    /// What the sealed form is bound to.
    fn context(&self) -> String {
        format!("request/{}/{}/{}", self.method, self.id, self.caller)
    }
}

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Another one was sent with its id.
    Other,
    /// It was carried out.
    Done {
        /// What was answered, if that was kept.
        answer: Option<Vec<u8>>,
    },
}

impl Store {
    /// The same database for what is written to carry out a request: the first write notes it, and is refused with
    /// [`Error::Repeated`] if it was carried out before.
    #[must_use]
    pub fn carrying_out(&self, mark: Arc<RequestMark>) -> Store {
        Store {
            inner: self.inner.clone(),
            request: Some(mark),
        }
    }

    /// What is known of a request, unless it was noted by this very attempt.
    ///
    /// # Errors
    /// The database's.
    pub async fn known_request(&self, mark: &RequestMark) -> Result<Option<Known>, Error> {
        let Some(row) = find(&self.inner.read, mark).await? else {
            return Ok(None);
        };
        if row.attempt == mark.attempt || row.created_millis < self.now_millis() - KEPT_MILLIS {
            return Ok(None);
        }
        // What was sealed with a key that is not there any more is known to have been, and nothing else of it.
        let Ok(plain) = self.inner.sealer.open(&mark.context(), &row.sealed) else {
            return Ok(Some(Known::Done { answer: None }));
        };
        let (digest, rest) = plain.split_at_checked(DIGEST_LEN).ok_or(Error::Corrupt {
            place: "requests.sealed",
            what: "is too short".to_owned(),
        })?;
        if digest != mark.digest {
            return Ok(Some(Known::Other));
        }
        // The byte between them tells an empty answer from none.
        let answer = rest.split_first().map(|(_, answer)| answer.to_vec());
        Ok(Some(Known::Done { answer }))
    }

    /// Keeps what was answered to a request, and forgets requests that are old. An answer that is too long is not kept.
    ///
    /// # Errors
    /// The database's.
    pub async fn keep_answer(&self, mark: &RequestMark, answer: &[u8]) -> Result<(), Error> {
        if answer.len() > MAX_ANSWER_BYTES {
            return Ok(());
        }
        let plain = Zeroizing::new([&mark.digest[..], &[1], answer].concat());
        let sealed = self.inner.sealer.seal(&mark.context(), &plain).map_err(Error::Key)?;
        let old = self.now_millis() - KEPT_MILLIS;
        write!(self, |transaction| {
            request::Entity::update_many()
                .col_expr(request::Column::Sealed, Expr::value(sealed.clone()))
                .filter(request::Column::Caller.eq(mark.caller.as_str()))
                .filter(request::Column::Method.eq(mark.method))
                .filter(request::Column::RequestId.eq(mark.id.as_str()))
                .filter(request::Column::Attempt.eq(mark.attempt.as_str()))
                .exec(&transaction)
                .await?;
            request::Entity::delete_many()
                .filter(request::Column::CreatedMillis.lt(old))
                .exec(&transaction)
                .await?;
            Ok(())
        })
    }

    /// Notes the request that is carried out, at the beginning of each of its transactions.
    pub(super) async fn note_request(&self, transaction: &DatabaseTransaction) -> Result<(), Error> {
        let Some(mark) = &self.request else { return Ok(()) };
        let now = self.now_millis();
        request::Entity::delete_many()
            .filter(request::Column::Caller.eq(mark.caller.as_str()))
            .filter(request::Column::Method.eq(mark.method))
            .filter(request::Column::RequestId.eq(mark.id.as_str()))
            .filter(request::Column::CreatedMillis.lt(now - KEPT_MILLIS))
            .exec(transaction)
            .await?;
        let sealer = &self.inner.sealer;
        let row = request::ActiveModel {
            caller: Set(mark.caller.clone()),
            method: Set(mark.method.to_owned()),
            request_id: Set(mark.id.clone()),
            attempt: Set(mark.attempt.clone()),
            sealed: Set(sealer.seal(&mark.context(), &mark.digest).map_err(Error::Key)?),
            created_millis: Set(now),
        };
        let inserted = request::Entity::insert(row)
            .on_conflict(OnConflict::new().do_nothing().to_owned())
            .try_insert()
            .exec_without_returning(transaction)
            .await?;
        if matches!(inserted, sea_orm::TryInsertResult::Inserted(1..)) {
            return Ok(());
        }
        // A request may take several transactions.
        match find(transaction, mark).await? {
            Some(row) if row.attempt == mark.attempt => Ok(()),
            _ => Err(Error::Repeated),
        }
    }
}

async fn find(connection: &impl ConnectionTrait, mark: &RequestMark) -> Result<Option<request::Model>, Error> {
    let key = (mark.caller.clone(), mark.method.to_owned(), mark.id.clone());
    Ok(request::Entity::find_by_id(key).one(connection).await?)
}
