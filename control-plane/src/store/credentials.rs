//! Credentials. Secrets are sealed before they reach a statement, each for its own row and field; nothing but
//! [`Store::credential_secret`] and [`Store::reseal`] opens one.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::{
    aws,
    crypto::Sealer,
    ids::{CredentialName, CredentialUid, Label, PipeName, ProjectName},
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, Condition, DatabaseTransaction, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    Select,
    sea_query::{ExprTrait as _, LockType, OnConflict},
};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    CredentialKind, CredentialSecret, Error, NewCredential, Store, StoredCredential,
    convert::{from_json, from_millis, from_text, to_json},
    entity::{batch, credential, credential_use, pipe, revision},
    transaction::write,
};

/// Fields that are sealed. Part of what a sealed value is bound to, so they cannot be renamed.
pub(super) const SECRET: &str = "secret";
pub(super) const TOKEN: &str = "token";
/// Most roles of a chain. AWS knows no bound; each costs a call whenever a session is renewed.
pub(super) const MAX_CHAIN: usize = 4;

impl Store {
    /// Stores a credential.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], or the database's.
    pub async fn create_credential(&self, new: NewCredential) -> Result<StoredCredential, Error> {
        let sealer = &self.inner.sealer;
        let Split {
            mut kind,
            secret,
            token,
        } = split(&new.secret);
        if let CredentialKind::AwsRole { source, .. } = &mut kind {
            source.clone_from(&new.source);
        }
        let fingerprint = secret.map(|secret| sealer.fingerprint(secret.expose_secret().as_bytes()));
        let row = credential::Model {
            uid: new.uid.to_string(),
            project: new.name.project.0.to_string(),
            credential_id: new.name.id.to_string(),
            display_name: new.display_name.clone(),
            kind: to_json("credentials.kind", &kind)?,
            fingerprint: fingerprint.unwrap_or_default(),
            sealed_secret: seal(sealer, new.uid, SECRET, secret)?,
            sealed_token: seal(sealer, new.uid, TOKEN, token)?,
            created_millis: self.now_millis(),
        };
        write!(self, |transaction| {
            if let Some(source) = &new.source {
                check_source(&transaction, source).await?;
            }
            let inserted = credential::Entity::insert(insertable(&row))
                .on_conflict(OnConflict::new().do_nothing().to_owned())
                .try_insert()
                .exec_without_returning(&transaction)
                .await?;
            if !matches!(inserted, sea_orm::TryInsertResult::Inserted(1..)) {
                return Err(Error::AlreadyExists {
                    name: new.name.to_string(),
                });
            }
            row.clone().try_into()
        })
    }

    /// A credential without its secret.
    ///
    /// # Errors
    /// The database's.
    pub async fn get_credential(&self, name: &CredentialName) -> Result<Option<StoredCredential>, Error> {
        let row = by_name(name).one(&self.inner.read).await?;
        row.map(StoredCredential::try_from).transpose()
    }

    /// Credentials of a project in name order, at most `limit`, those behind `after`.
    ///
    /// # Errors
    /// The database's.
    pub async fn list_credentials(
        &self,
        project: &ProjectName,
        after: Option<&Label>,
        limit: u32,
    ) -> Result<Vec<StoredCredential>, Error> {
        let mut select = credential::Entity::find().filter(credential::Column::Project.eq(project.0.as_str()));
        if let Some(after) = after {
            select = select.filter(credential::Column::CredentialId.gt(after.as_str()));
        }
        let select = select
            .order_by_asc(credential::Column::CredentialId)
            .limit(u64::from(limit));
        let rows = select.all(&self.inner.read).await?;
        rows.into_iter().map(StoredCredential::try_from).collect()
    }

    /// Removes a credential. False if there is none of that name.
    ///
    /// # Errors
    /// [`Error::InUse`] while a pipe refers to it, or an open batch was made with a revision that does; or the database's.
    pub async fn delete_credential(&self, name: &CredentialName) -> Result<bool, Error> {
        write!(self, |transaction| {
            let Some(row) = by_name(name).lock(LockType::Update).one(&transaction).await? else {
                return Ok(false);
            };
            refuse_if_source(&transaction, name).await?;
            forget_old_uses(&transaction, name, &row.uid).await?;
            credential::Entity::delete_many()
                .filter(credential::Column::Uid.eq(row.uid))
                .exec(&transaction)
                .await?;
            Ok(true)
        })
    }

    /// A credential with its secret; a role with those of the whole chain that it is assumed with.
    ///
    /// # Errors
    /// [`Error::Key`] if it was sealed with another key or is damaged, or the database's.
    pub async fn credential_secret(&self, name: &CredentialName) -> Result<Option<CredentialSecret>, Error> {
        // What is assumed comes before what it is assumed with.
        let mut roles = Vec::new();
        let mut next = name.clone();
        let mut innermost = loop {
            let Some(row) = by_name(&next).one(&self.inner.read).await? else {
                // Credentials that roles are assumed with stay for as long as the roles do.
                return match roles.is_empty() {
                    true => Ok(None),
                    false => Err(Error::CredentialNotFound { name: next }),
                };
            };
            match self.own_secret(&row)? {
                Own::Whole(secret) => break secret,
                Own::Role(role, None) => {
                    roles.push(role);
                    break CredentialSecret::Aws(aws::Credential::Ambient);
                }
                Own::Role(role, Some(source)) if roles.len() < MAX_CHAIN => {
                    roles.push(role);
                    next = source;
                }
                Own::Role(_, Some(source)) => return Err(Error::SourceUnfit { name: source }),
            }
        };
        for role in roles.into_iter().rev() {
            let CredentialSecret::Aws(source) = innermost else {
                return Err(Error::SourceUnfit { name: next });
            };
            innermost = CredentialSecret::Aws(aws::Credential::Role {
                role_arn: role.arn,
                external_id: role.external_id,
                session_name: role.session_name,
                source: Box::new(source),
            });
        }
        Ok(Some(innermost))
    }

    /// What one row says.
    fn own_secret(&self, row: &credential::Model) -> Result<Own, Error> {
        let sealer = &self.inner.sealer;
        let uid: CredentialUid = from_text("credentials.uid", &row.uid)?;
        let secret = open(sealer, uid, SECRET, row.sealed_secret.as_deref())?;
        let session_token = open(sealer, uid, TOKEN, row.sealed_token.as_deref())?;
        let needed = |secret: Option<SecretString>| {
            let what = || "is missing for this kind of credential".to_owned();
            secret.ok_or_else(|| Error::Corrupt {
                place: "credentials.sealed_secret",
                what: what(),
            })
        };
        Ok(match from_json("credentials.kind", &row.kind)? {
            CredentialKind::AwsKeys { access_key_id } => Own::Whole(CredentialSecret::Aws(aws::Credential::Keys {
                access_key_id,
                secret_access_key: needed(secret)?,
                session_token,
            })),
            CredentialKind::AwsRole {
                role_arn,
                external_id,
                session_name,
                source,
            } => Own::Role(
                Role {
                    arn: role_arn,
                    external_id,
                    session_name,
                },
                source,
            ),
            CredentialKind::AwsAmbient => Own::Whole(CredentialSecret::Aws(aws::Credential::Ambient)),
            CredentialKind::ClickHouseUser { username } => Own::Whole(CredentialSecret::ClickHouse {
                username,
                password: needed(secret)?,
            }),
        })
    }
}

/// What is stored of one credential.
enum Own {
    Whole(CredentialSecret),
    /// A role and the name of what it is assumed with.
    Role(Role, Option<CredentialName>),
}

struct Role {
    arn: String,
    external_id: Option<String>,
    session_name: String,
}

/// Checks that a role can be assumed with a credential, and keeps that from being deleted until the role is stored.
async fn check_source(transaction: &DatabaseTransaction, source: &CredentialName) -> Result<(), Error> {
    let mut next = source.clone();
    // The new one is the first.
    let mut roles = 1;
    while roles <= MAX_CHAIN {
        let Some(row) = by_name(&next).lock(LockType::Update).one(transaction).await? else {
            return Err(Error::CredentialNotFound { name: next });
        };
        next = match from_json("credentials.kind", &row.kind)? {
            CredentialKind::AwsKeys { .. } | CredentialKind::AwsAmbient => return Ok(()),
            CredentialKind::AwsRole { source, .. } => {
                roles += 1;
                match source {
                    Some(source) => source,
                    None if roles <= MAX_CHAIN => return Ok(()),
                    None => break,
                }
            }
            CredentialKind::ClickHouseUser { .. } => return Err(Error::SourceUnfit { name: next }),
        };
    }
    Err(Error::SourceUnfit { name: source.clone() })
}

/// Checks that no role is assumed with a credential. Its row is locked, so none begins to be. One that names it and cannot be read
/// otherwise is taken for such a role; others that cannot be read are no concern of this one.
async fn refuse_if_source(transaction: &DatabaseTransaction, name: &CredentialName) -> Result<(), Error> {
    let quoted = to_json("credentials.kind", &name.to_string())?;
    let rows: Vec<(String, String)> = credential::Entity::find()
        .select_only()
        .columns([credential::Column::CredentialId, credential::Column::Kind])
        .filter(credential::Column::Project.eq(name.project.0.as_str()))
        .filter(credential::Column::Kind.contains(&quoted))
        .order_by_asc(credential::Column::CredentialId)
        .into_tuple()
        .all(transaction)
        .await?;
    let mut credentials = Vec::new();
    for (id, kind) in rows {
        // What the database takes for a match may be none: `_` is any character to it.
        let is_source = match from_json::<CredentialKind>("credentials.kind", &kind) {
            Ok(CredentialKind::AwsRole { source, .. }) => source.as_ref() == Some(name),
            Ok(_) => false,
            Err(_) => kind.contains(&quoted),
        };
        if is_source {
            credentials.push(CredentialName {
                project: name.project.clone(),
                id: from_text("credentials.credential_id", &id)?,
            });
        }
    }
    if credentials.is_empty() {
        return Ok(());
    }
    Err(Error::IsSource {
        name: name.clone(),
        credentials,
    })
}

fn by_name(name: &CredentialName) -> Select<credential::Entity> {
    credential::Entity::find()
        .filter(credential::Column::Project.eq(name.project.0.as_str()))
        .filter(credential::Column::CredentialId.eq(name.id.as_str()))
}

/// Checks that nothing needs a credential, then removes the old revisions that refer to it: without it they cannot
/// be run again, so no batch may be prepared with them.
async fn forget_old_uses(
    transaction: &DatabaseTransaction,
    name: &CredentialName,
    credential: &str,
) -> Result<(), Error> {
    let uses = credential_use::Entity::find().filter(credential_use::Column::CredentialUid.eq(credential));
    let uses = uses.all(transaction).await?;
    let uids: BTreeSet<&str> = uses.iter().map(|used| used.pipe_uid.as_str()).collect();
    let pipes: BTreeMap<String, pipe::Model> = pipe::Entity::find()
        .filter(pipe::Column::Uid.is_in(uids.iter().copied()))
        .order_by_asc(pipe::Column::Uid)
        .lock(LockType::Update)
        .all(transaction)
        .await?
        .into_iter()
        .map(|row| (row.uid.clone(), row))
        .collect();
    let open: Vec<(String, i64)> = batch::Entity::find()
        .select_only()
        .columns([batch::Column::PipeUid, batch::Column::Revision])
        .filter(batch::Column::PipeUid.is_in(uids))
        .distinct()
        .into_tuple()
        .all(transaction)
        .await?;
    let mut needed_by = BTreeSet::new();
    let mut old = Condition::any();
    for used in &uses {
        let key = (used.pipe_uid.clone(), used.revision);
        match pipes.get(&used.pipe_uid) {
            Some(row) if row.revision == used.revision || open.contains(&key) => {
                needed_by.insert(PipeName {
                    project: ProjectName(from_text("pipes.project", &row.project)?),
                    id: from_text("pipes.pipe_id", &row.pipe_id)?,
                });
            }
            _ => {
                let row = revision::Column::PipeUid
                    .eq(key.0)
                    .and(revision::Column::Revision.eq(key.1));
                old = old.add(row);
            }
        }
    }
    if !needed_by.is_empty() {
        return Err(Error::InUse {
            name: name.clone(),
            pipes: needed_by.into_iter().collect(),
        });
    }
    if uses.is_empty() {
        return Ok(());
    }
    for used in &uses {
        let of_revision = credential_use::Entity::delete_many()
            .filter(credential_use::Column::PipeUid.eq(used.pipe_uid.as_str()))
            .filter(credential_use::Column::Revision.eq(used.revision));
        of_revision.exec(transaction).await?;
    }
    revision::Entity::delete_many().filter(old).exec(transaction).await?;
    Ok(())
}

/// A credential in the parts in which it is stored.
struct Split<'a> {
    kind: CredentialKind,
    secret: Option<&'a SecretString>,
    token: Option<&'a SecretString>,
}

fn split(credential: &CredentialSecret) -> Split<'_> {
    match credential {
        CredentialSecret::Aws(aws::Credential::Keys {
            access_key_id,
            secret_access_key,
            session_token,
        }) => Split {
            kind: CredentialKind::AwsKeys {
                access_key_id: access_key_id.clone(),
            },
            secret: Some(secret_access_key),
            token: session_token.as_ref(),
        },
        CredentialSecret::Aws(aws::Credential::Role {
            role_arn,
            external_id,
            session_name,
            source: _,
        }) => Split {
            kind: CredentialKind::AwsRole {
                role_arn: role_arn.clone(),
                external_id: external_id.clone(),
                session_name: session_name.clone(),
                source: None,
            },
            secret: None,
            token: None,
        },
        CredentialSecret::Aws(aws::Credential::Ambient) => Split {
            kind: CredentialKind::AwsAmbient,
            secret: None,
            token: None,
        },
        CredentialSecret::ClickHouse { username, password } => Split {
            kind: CredentialKind::ClickHouseUser {
                username: username.clone(),
            },
            secret: Some(password),
            token: None,
        },
    }
}

fn context(uid: CredentialUid, field: &str) -> String {
    format!("credential/{uid}/{field}")
}

pub(super) fn seal(
    sealer: &Sealer,
    uid: CredentialUid,
    field: &str,
    secret: Option<&SecretString>,
) -> Result<Option<Vec<u8>>, Error> {
    let seal = |secret: &SecretString| sealer.seal(&context(uid, field), secret.expose_secret().as_bytes());
    secret.map(seal).transpose().map_err(Error::Key)
}

pub(super) fn open(
    sealer: &Sealer,
    uid: CredentialUid,
    field: &str,
    sealed: Option<&[u8]>,
) -> Result<Option<SecretString>, Error> {
    let Some(sealed) = sealed else { return Ok(None) };
    let plain = sealer.open(&context(uid, field), sealed).map_err(Error::Key)?;
    let text = std::str::from_utf8(&plain).map_err(|_| Error::Key(millrace_common::crypto::Error::Damaged))?;
    Ok(Some(SecretString::from(text)))
}

fn insertable(row: &credential::Model) -> credential::ActiveModel {
    let row = row.clone();
    credential::ActiveModel {
        uid: Set(row.uid),
        project: Set(row.project),
        credential_id: Set(row.credential_id),
        display_name: Set(row.display_name),
        kind: Set(row.kind),
        fingerprint: Set(row.fingerprint),
        sealed_secret: Set(row.sealed_secret),
        sealed_token: Set(row.sealed_token),
        created_millis: Set(row.created_millis),
    }
}

impl TryFrom<credential::Model> for StoredCredential {
    type Error = Error;

    fn try_from(row: credential::Model) -> Result<Self, Error> {
        Ok(StoredCredential {
            name: CredentialName {
                project: ProjectName(from_text("credentials.project", &row.project)?),
                id: from_text("credentials.credential_id", &row.credential_id)?,
            },
            uid: from_text("credentials.uid", &row.uid)?,
            display_name: row.display_name,
            kind: from_json("credentials.kind", &row.kind)?,
            fingerprint: row.fingerprint,
            created: from_millis("credentials.created_millis", row.created_millis)?,
        })
    }
}
