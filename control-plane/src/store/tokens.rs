//! Tokens: what is known of what callers send. The token itself is nowhere.

use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    sea_query::Expr,
};

use super::{
    Error, Store, StoredToken,
    convert::{from_millis, from_text},
    entity::token,
    transaction::write,
};

/// That a token was used is written down this often at most.
const USE_NOTED_EVERY_MILLIS: i64 = 3_600_000;

impl Store {
    /// Stores a token that was just made.
    ///
    /// # Errors
    /// The database's.
    pub async fn create_token(&self, new: &StoredToken) -> Result<(), Error> {
        write!(self, |transaction| {
            let row = token::ActiveModel {
                token_id: Set(new.id.clone()),
                display_name: Set(new.display_name.clone()),
                role: Set(new.role.as_str().to_owned()),
                hash: Set(new.hash.clone()),
                creator: Set(new.creator.clone()),
                created_millis: Set(new.created.as_millisecond()),
                expires_millis: Set(new.expires.map(|time| time.as_millisecond())),
                revoked_millis: Set(None),
                used_millis: Set(None),
            };
            token::Entity::insert(row).exec_without_returning(&transaction).await?;
            Ok(())
        })
    }

    /// A token.
    ///
    /// # Errors
    /// The database's.
    pub async fn get_token(&self, id: &str) -> Result<Option<StoredToken>, Error> {
        let row = token::Entity::find_by_id(id.to_owned()).one(&self.inner.read).await?;
        row.map(parse).transpose()
    }

    /// Notes that a token was used, now and then.
    ///
    /// # Errors
    /// The database's.
    pub async fn note_token_use(&self, token: &StoredToken) -> Result<(), Error> {
        let now = self.now_millis();
        let used = token.used.map(|time| time.as_millisecond());
        if used.is_some_and(|used| now - used < USE_NOTED_EVERY_MILLIS) {
            return Ok(());
        }
        write!(self, |transaction| {
            token::Entity::update_many()
                .col_expr(token::Column::UsedMillis, Expr::value(now))
                .filter(token::Column::TokenId.eq(token.id.as_str()))
                .exec(&transaction)
                .await?;
            Ok(())
        })
    }

    /// Tokens, oldest first, at most `limit`, those behind `after`.
    ///
    /// # Errors
    /// The database's.
    pub async fn list_tokens(&self, after: Option<&str>, limit: u32) -> Result<Vec<StoredToken>, Error> {
        // Ids rise with time.
        let mut select = token::Entity::find();
        if let Some(after) = after {
            select = select.filter(token::Column::TokenId.gt(after));
        }
        let select = select.order_by_asc(token::Column::TokenId).limit(u64::from(limit));
        select.all(&self.inner.read).await?.into_iter().map(parse).collect()
    }

    /// Ends a token, unless it was ended before. False if there is none.
    ///
    /// # Errors
    /// The database's.
    pub async fn revoke_token(&self, id: &str) -> Result<bool, Error> {
        let now = self.now_millis();
        write!(self, |transaction| {
            token::Entity::update_many()
                .col_expr(token::Column::RevokedMillis, Expr::value(now))
                .filter(token::Column::TokenId.eq(id))
                .filter(token::Column::RevokedMillis.is_null())
                .exec(&transaction)
                .await?;
            Ok(token::Entity::find_by_id(id.to_owned())
                .one(&transaction)
                .await?
                .is_some())
        })
    }
}

fn parse(row: token::Model) -> Result<StoredToken, Error> {
    let time = |place, millis: Option<i64>| millis.map(|millis| from_millis(place, millis)).transpose();
    Ok(StoredToken {
        role: from_text("tokens.role", &row.role)?,
        created: from_millis("tokens.created_millis", row.created_millis)?,
        expires: time("tokens.expires_millis", row.expires_millis)?,
        revoked: time("tokens.revoked_millis", row.revoked_millis)?,
        used: time("tokens.used_millis", row.used_millis)?,
        id: row.token_id,
        display_name: row.display_name,
        hash: row.hash,
        creator: row.creator,
    })
}
