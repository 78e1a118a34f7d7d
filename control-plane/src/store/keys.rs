//! Which keys the database's secrets are sealed with, and sealing them with another one.
//!
//! To change the key, each control plane first gets the new one as its second, then as its first; both times by a restart. From then
//! on it seals what it stores with the new key, and what is stored already again with it, one row at a time. A control plane does
//! not start while a secret is sealed with a key that it does not have.

use millrace_common::{crypto::Sealer, ids::CredentialUid};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, DatabaseTransaction, EntityTrait, QueryFilter as _, QuerySelect as _,
    sea_query::{Expr, LockType, OnConflict},
};
use secrecy::ExposeSecret as _;

use super::{
    Error, Store,
    convert::from_text,
    credentials::{SECRET, TOKEN, open, seal},
    entity::{credential, setting},
    transaction::write,
};

/// Name and place of the value that tells whether the key at hand is the key of the database's secrets.
const KEY_CHECK: &str = "settings/key_check";
/// What it holds.
const CHECKED: &[u8] = b"millrace";

/// Checks that the keys of all secrets are at hand, and makes the key check where there is none yet.
pub(super) async fn check(transaction: &DatabaseTransaction, sealer: &Sealer) -> Result<(), Error> {
    let row = setting::ActiveModel {
        name: Set(KEY_CHECK.to_owned()),
        value: Set(sealer.seal(KEY_CHECK, CHECKED).map_err(Error::Key)?),
    };
    setting::Entity::insert(row)
        .on_conflict(OnConflict::column(setting::Column::Name).do_nothing().to_owned())
        .try_insert()
        .exec_without_returning(transaction)
        .await?;
    let stored = setting::Entity::find_by_id(KEY_CHECK.to_owned())
        .one(transaction)
        .await?;
    let stored = stored.ok_or(Error::Corrupt {
        place: "settings",
        what: "no key check".to_owned(),
    })?;
    sealer.open(KEY_CHECK, &stored.value).map_err(Error::Key)?;
    let rows = credential::Entity::find().all(transaction).await?;
    for sealed in rows
        .iter()
        .flat_map(|row| [&row.sealed_secret, &row.sealed_token])
        .flatten()
    {
        match sealer.knows(sealed) {
            // One that is damaged is the matter of its own pipes.
            Ok(()) | Err(millrace_common::crypto::Error::Damaged) => {}
            Err(error) => return Err(Error::Key(error)),
        }
    }
    Ok(())
}

impl Store {
    /// Seals with the ring's first key what is sealed with others; what cannot be opened stays as it is. How many were sealed again.
    ///
    /// # Errors
    /// The database's. What was done until then is done.
    pub async fn reseal(&self) -> Result<usize, Error> {
        let sealer = &self.inner.sealer;
        let is_current = |row: &credential::Model| {
            [&row.sealed_secret, &row.sealed_token]
                .into_iter()
                .flatten()
                .all(|sealed| sealer.is_current(sealed))
        };
        let rows = credential::Entity::find().all(&self.inner.read).await?;
        let mut done = 0;
        for row in rows.iter().filter(|row| !is_current(row)) {
            match self.reseal_one(&row.uid).await {
                Ok(resealed) => done += usize::from(resealed),
                Err(error @ (Error::Key(_) | Error::Corrupt { .. })) => {
                    let credential = format!("projects/{}/credentials/{}", row.project, row.credential_id);
                    tracing::error!(
                        credential,
                        error = &error as &dyn std::error::Error,
                        "a secret cannot be opened"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        let check = sealer.seal(KEY_CHECK, CHECKED).map_err(Error::Key)?;
        write!(self, |transaction| {
            let stored = setting::Entity::find_by_id(KEY_CHECK.to_owned())
                .one(&transaction)
                .await?;
            if stored.is_some_and(|stored| !sealer.is_current(&stored.value)) {
                setting::Entity::update_many()
                    .col_expr(setting::Column::Value, Expr::value(check.clone()))
                    .filter(setting::Column::Name.eq(KEY_CHECK))
                    .exec(&transaction)
                    .await?;
            }
            Ok(())
        })?;
        Ok(done)
    }

    /// False if the credential is gone.
    async fn reseal_one(&self, uid: &str) -> Result<bool, Error> {
        let sealer = &self.inner.sealer;
        write!(self, |transaction| {
            let select = credential::Entity::find_by_id(uid.to_owned()).lock(LockType::Update);
            let Some(row) = select.one(&transaction).await? else {
                return Ok(false);
            };
            let uid: CredentialUid = from_text("credentials.uid", &row.uid)?;
            let secret = open(sealer, uid, SECRET, row.sealed_secret.as_deref())?;
            let token = open(sealer, uid, TOKEN, row.sealed_token.as_deref())?;
            // Equal secrets have equal fingerprints, whenever they were stored.
            let fingerprint = secret
                .as_ref()
                .map(|secret| sealer.fingerprint(secret.expose_secret().as_bytes()))
                .unwrap_or_default();
            credential::Entity::update_many()
                .col_expr(
                    credential::Column::SealedSecret,
                    Expr::value(seal(sealer, uid, SECRET, secret.as_ref())?),
                )
                .col_expr(
                    credential::Column::SealedToken,
                    Expr::value(seal(sealer, uid, TOKEN, token.as_ref())?),
                )
                .col_expr(credential::Column::Fingerprint, Expr::value(fingerprint))
                .filter(credential::Column::Uid.eq(row.uid.as_str()))
                .exec(&transaction)
                .await?;
            Ok(true)
        })
    }
}
