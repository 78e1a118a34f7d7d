//! What is particular to SQLite, to opening, and to the stored form. What both databases must do alike is tested on both, in
//! the store tests of `integration-tests`.

use std::path::Path;

use millrace_common::{
    aws,
    crypto::{self, KEY_LEN},
    ids::{CredentialName, CredentialUid, PipeUid},
};
use sea_orm::{ConnectionTrait as _, EntityTrait as _};
use secrecy::SecretString;

use super::*;

mod golden;

use golden::{resolved, spec};

fn sealer(byte: u8) -> Arc<Sealer> {
    Arc::new(Sealer::new(&[byte; KEY_LEN]).unwrap())
}

fn url(path: &Path) -> Options {
    Options::new(format!("sqlite://{}", path.display()))
}

async fn open_file(path: &Path) -> Result<Store, Error> {
    Store::open(&url(path), sealer(1), Clock::System).await
}

fn click_house(name: &str, password: &str) -> NewCredential {
    NewCredential {
        name: name.parse().unwrap(),
        uid: CredentialUid::new(),
        display_name: String::new(),
        secret: CredentialSecret::ClickHouse {
            username: "default".to_owned(),
            password: SecretString::from(password.to_owned()),
        },
        source: None,
    }
}

async fn fill(store: &Store) -> StoredPipe {
    for name in [
        "projects/default/credentials/aws",
        "projects/default/credentials/clickhouse",
    ] {
        store
            .create_credential(click_house(name, "correct horse battery staple"))
            .await
            .unwrap();
    }
    let new = NewPipe {
        name: "projects/default/pipes/events".parse().unwrap(),
        uid: PipeUid::new(),
        spec: spec(),
        resolved: resolved(),
        desired: millrace_common::pipe::DesiredState::Running,
        effective: None,
        shards: vec![NewShard {
            id: "shardId-000000000000".parse().unwrap(),
            parents: Vec::new(),
            start: millrace_common::position::Position::TrimHorizon,
        }],
    };
    store.create_pipe(new).await.unwrap()
}

#[tokio::test]
async fn reopening_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a?b c.db");
    let options = Options::new(format!(
        "sqlite://{}",
        path.display().to_string().replace('?', "%3F").replace(' ', "%20")
    ));
    let open = || Store::open(&options, sealer(1), Clock::System);
    let store = open().await.unwrap();
    let pipe = fill(&store).await;
    drop(store);
    // Dropping closes in the background; only the lock is given back at once, and SQLite sees to the rest.
    let store = open().await.unwrap();
    assert_eq!(store.get_pipe(&pipe.name).await.unwrap(), Some(pipe.clone()));
    assert_eq!(store.shards(pipe.uid).await.unwrap().len(), 1);
    store.close().await;
    assert!(matches!(store.get_pipe(&pipe.name).await, Err(Error::Unavailable(_))));
    assert!(path.exists());
}

#[tokio::test]
async fn a_second_opener_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = open_file(&path).await.unwrap();
    let error = open_file(&path).await.unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    assert!(error.to_string().contains("store.db.lock"), "{error}");
    let clone = store.clone();
    drop(store);
    assert!(
        matches!(open_file(&path).await, Err(Error::Locked { .. })),
        "a clone is still there"
    );
    drop(clone);
    open_file(&path).await.unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_can_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = open_file(&path).await.unwrap();
    fill(&store).await;
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", entry.file_name());
    }
}

#[tokio::test]
async fn settings_that_durability_rests_on_are_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_file(&directory.path().join("store.db")).await.unwrap();
    let backend = store.inner.write.get_database_backend();
    for (pragma, expected) in [("synchronous", "2"), ("foreign_keys", "1"), ("busy_timeout", "5000")] {
        let statement = sea_orm::Statement::from_string(backend, format!("PRAGMA {pragma}"));
        let row = store.inner.write.query_one_raw(statement).await.unwrap().unwrap();
        assert_eq!(
            row.try_get_by_index::<i64>(0).unwrap().to_string(),
            expected,
            "{pragma}"
        );
    }
    let statement = sea_orm::Statement::from_string(backend, "PRAGMA journal_mode");
    let row = store.inner.write.query_one_raw(statement).await.unwrap().unwrap();
    assert_eq!(row.try_get_by_index::<String>(0).unwrap(), "wal");
    // The reading connections cannot write.
    let refused = store.inner.read.execute_unprepared("DELETE FROM settings").await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn another_key_is_refused_at_the_door() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    drop(open_file(&path).await.unwrap());
    let error = Store::open(&url(&path), sealer(2), Clock::System).await.unwrap_err();
    assert!(matches!(error, Error::Key(crypto::Error::OtherKey { .. })), "{error}");
}

#[tokio::test]
async fn a_newer_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = open_file(&path).await.unwrap();
    let newer = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m0999_later', 0)";
    store.inner.write.execute_unprepared(newer).await.unwrap();
    drop(store);
    let error = open_file(&path).await.unwrap_err();
    assert!(
        matches!(&error, Error::Newer { migration } if migration == "m0999_later"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_not_a_database_url_is_refused_without_repeating_it() {
    for (bad, part) in [
        ("mysql://root:hunter2@localhost/x", "sqlite:"),
        ("/var/lib/store.db", "sqlite:"),
        ("", "sqlite:"),
        ("postgres://user:hunter2@host:notaport/db", "PostgreSQL"),
        ("sqlite://x.db?mode=sideways", "mode"),
    ] {
        let error = Store::open(&Options::new(bad), sealer(1), Clock::System)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Url { .. }), "{bad}: {error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(!format!("{error} {error:?} {:?}", Options::new(bad)).contains("hunter2"));
    }
    let error = open_file(Path::new("/proc/no/such/directory/store.db"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
}

#[tokio::test]
async fn no_secret_is_stored_in_the_clear() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = open_file(&path).await.unwrap();
    fill(&store).await;
    let mut aws = click_house("projects/default/credentials/keys", "");
    aws.secret = CredentialSecret::Aws(millrace_common::aws::Credential::Keys {
        access_key_id: "AKIAVISIBLE".to_owned(),
        secret_access_key: SecretString::from("wJalrXUtnFEMI"),
        session_token: Some(SecretString::from("FwoGZXIvYXdz")),
    });
    store.create_credential(aws).await.unwrap();
    store.close().await;
    let mut seen_id = false;
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        seen_id |= holds("AKIAVISIBLE");
        assert!(!holds("wJalrXUtnFEMI") && !holds("FwoGZXIvYXdz") && !holds("correct horse"));
    }
    assert!(seen_id, "the search finds what is there");
}

#[tokio::test]
async fn a_sealed_secret_does_not_open_in_another_row() {
    let store = Store::open(&Options::new("sqlite::memory:"), sealer(1), Clock::System)
        .await
        .unwrap();
    fill(&store).await;
    let name = "projects/default/credentials/aws".parse().unwrap();
    assert!(store.credential_secret(&name).await.unwrap().is_some());
    let moved = "UPDATE credentials SET sealed_secret = \
                 (SELECT sealed_secret FROM credentials WHERE credential_id = 'clickhouse') WHERE credential_id = 'aws'";
    store.inner.write.execute_unprepared(moved).await.unwrap();
    let error = store.credential_secret(&name).await.unwrap_err();
    assert!(matches!(error, Error::Key(crypto::Error::Damaged)), "{error}");
}

#[tokio::test]
async fn what_cannot_be_read_is_an_error_that_names_its_place() {
    let store = Store::open(&Options::new("sqlite::memory:"), sealer(1), Clock::System)
        .await
        .unwrap();
    let pipe = fill(&store).await;
    store
        .inner
        .write
        .execute_unprepared("UPDATE shards SET checkpoint = '{\"nowhere\":1}'")
        .await
        .unwrap();
    let error = store.shards(pipe.uid).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Corrupt {
                place: "shards.checkpoint",
                ..
            }
        ),
        "{error}"
    );
}

impl Store {
    /// Does to the database what no operation of the store does.
    pub(crate) async fn tamper(&self, sql: &str) {
        self.inner.write.execute_unprepared(sql).await.expect("good SQL");
    }
}

#[tokio::test]
async fn a_pipe_that_cannot_be_read_hides_no_other() {
    for damage in [
        "UPDATE pipes SET fault = 'no JSON' WHERE uid",
        "UPDATE pipe_revisions SET resolved = '{}' WHERE pipe_uid",
        "UPDATE shards SET checkpoint = '{}' WHERE pipe_uid",
    ] {
        let store = Store::open(&Options::new("sqlite::memory:"), sealer(1), Clock::System)
            .await
            .unwrap();
        let broken = fill(&store).await;
        let sound = store
            .create_pipe(NewPipe {
                name: "projects/default/pipes/sound".parse().unwrap(),
                uid: PipeUid::new(),
                spec: broken.spec.clone(),
                resolved: broken.resolved.clone(),
                desired: millrace_common::pipe::DesiredState::Running,
                effective: None,
                shards: Vec::new(),
            })
            .await
            .unwrap();
        store.tamper(&format!("{damage} = '{}'", broken.uid)).await;
        let all = store.snapshot_all().await.unwrap();
        assert_eq!(
            all.pipes.iter().map(|pipe| pipe.pipe.uid).collect::<Vec<_>>(),
            [sound.uid]
        );
        let [told] = &all.damaged[..] else {
            panic!("{damage}: {all:?}")
        };
        let place = damage.split_whitespace().nth(1).unwrap();
        assert_eq!((told.uid, &told.name), (broken.uid, &broken.name));
        assert!(told.to_string().contains(&format!(" {place}.")), "{told}");
        let listed = store.list_pipes(&broken.name.project, None, 10).await.unwrap();
        assert_eq!(listed.len(), 2);
        assert!(listed.iter().flatten().any(|pipe| pipe.uid == sound.uid));
        // Damage to its row shows at once, damage to its shards with the snapshot.
        match store.find_pipe(&broken.name).await.unwrap().unwrap() {
            Ok(pipe) => assert!(matches!(store.snapshot(pipe.uid).await, Err(Error::Corrupt { .. }))),
            Err(told) => assert_eq!((told.uid, &told.name), (broken.uid, &broken.name)),
        }
        assert!(
            store
                .all_pipes()
                .await
                .unwrap()
                .iter()
                .any(|pipe| pipe.uid == sound.uid)
        );
    }
}

#[tokio::test]
async fn the_schema_itself_keeps_slices_apart() {
    let store = Store::open(&Options::new("sqlite::memory:"), sealer(1), Clock::System)
        .await
        .unwrap();
    let pipe = fill(&store).await;
    let batch = |id: &str| {
        format!(
            "INSERT INTO batches (pipe_uid, batch_id, revision, rows, rejected_records, records, bytes, digest, \
             prepared_millis) VALUES ('{}', '{id}', 1, 0, 0, 0, 0, x'00', 0)",
            pipe.uid
        )
    };
    let slice = |batch: &str, shard: &str, ordinal: u32| {
        format!(
            "INSERT INTO batch_slices VALUES ('{}', '{shard}', {ordinal}, '{batch}', 0, '\"trim_horizon\"', '1')",
            pipe.uid
        )
    };
    let shard = "shardId-000000000000";
    let run = async |sql: String| store.inner.write.execute_unprepared(&sql).await;
    run(batch("one")).await.unwrap();
    run(batch("two")).await.unwrap();
    run(slice("one", shard, 1)).await.unwrap();
    for forbidden in [
        slice("two", shard, 1),
        slice("one", shard, 2),
        slice("three", shard, 2),
        slice("two", "shardId-unknown", 2),
        batch("one"),
        batch("four").replace("1, 0, 0, 0, 0", "9, 0, 0, 0, 0"),
        batch("five").replace("1, 0, 0, 0, 0", "1, -1, 0, 0, 0"),
        "UPDATE shards SET phase = 'lost'".to_owned(),
        "UPDATE shards SET owner_worker = 'w1'".to_owned(),
        "DELETE FROM pipes".to_owned(),
    ] {
        assert!(run(forbidden.clone()).await.is_err(), "{forbidden}");
    }
    run(slice("two", shard, 2)).await.unwrap();
    assert_eq!(
        entity::slice::Entity::find()
            .all(&store.inner.read)
            .await
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn memory_databases_are_apart() {
    let options = Options::new("sqlite::memory:");
    let open = || Store::open(&options, sealer(1), Clock::System);
    let (one, two) = (open().await.unwrap(), open().await.unwrap());
    let pipe = fill(&one).await;
    assert_eq!(two.get_pipe(&pipe.name).await.unwrap(), None);
    one.ping().await.unwrap();
}

#[tokio::test]
async fn a_memory_database_outlives_callers_that_go_away() {
    let store = Store::open(&Options::new("sqlite::memory:"), sealer(1), Clock::System)
        .await
        .unwrap();
    let pipe = fill(&store).await;
    for round in 0..500 {
        // Goes away after some of its steps, wherever they end.
        let mut read = std::pin::pin!(store.get_pipe(&pipe.name));
        for _ in 0..round % 10 {
            if futures::poll!(&mut read).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    assert!(store.get_pipe(&pipe.name).await.unwrap().is_some());
}

#[tokio::test]
async fn a_damaged_credential_keeps_no_other_from_being_deleted_unless_it_names_it() {
    let store = Store::open(&Options::new("sqlite::memory:"), sealer(1), Clock::System)
        .await
        .unwrap();
    let name = |id: &str| -> CredentialName { format!("projects/default/credentials/{id}").parse().unwrap() };
    let create = async |id: &str, source: Option<&str>| {
        let secret = match source {
            None => aws::Credential::Ambient,
            Some(_) => aws::Credential::Role {
                role_arn: "arn:aws:iam::123456789012:role/x".to_owned(),
                external_id: None,
                session_name: "millrace".to_owned(),
                source: Box::new(aws::Credential::Ambient),
            },
        };
        let new = NewCredential {
            name: name(id),
            uid: CredentialUid::new(),
            display_name: String::new(),
            secret: CredentialSecret::Aws(secret),
            source: source.map(name),
        };
        store.create_credential(new).await.unwrap();
    };
    create("a-b", None).await;
    create("axb", None).await;
    create("role", Some("a-b")).await;
    create("broken", Some("axb")).await;
    let refused = store.delete_credential(&name("a-b")).await.unwrap_err();
    assert!(
        matches!(&refused, Error::IsSource { credentials, .. } if *credentials == [name("role")]),
        "{refused:?}"
    );

    let damage = async |sql: &str| store.inner.write.execute_unprepared(sql).await.unwrap();
    damage("UPDATE credentials SET kind = kind || '}' WHERE credential_id = 'broken'").await;
    let refused = store.delete_credential(&name("axb")).await.unwrap_err();
    assert!(
        matches!(&refused, Error::IsSource { credentials, .. } if *credentials == [name("broken")]),
        "{refused:?}"
    );
    // What it was does not show any more: it is no concern of others.
    damage("UPDATE credentials SET kind = '{' WHERE credential_id = 'broken'").await;
    assert!(store.delete_credential(&name("axb")).await.unwrap());
    assert!(store.delete_credential(&name("role")).await.unwrap());
    assert!(store.delete_credential(&name("a-b")).await.unwrap());
}
