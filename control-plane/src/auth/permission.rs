//! Who may call what: one table over all services. What is not in it nobody may call.

use super::Role;

/// What a method asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// At least this role; `None`: no token at all.
    pub role: Option<Role>,
    /// It changes something, so it is audited.
    pub changes: bool,
}

const fn see(role: Role) -> Need {
    Need {
        role: Some(role),
        changes: false,
    }
}

const fn change(role: Role) -> Need {
    Need {
        role: Some(role),
        changes: true,
    }
}

const ANYBODY: Need = Need {
    role: None,
    changes: false,
};

/// Methods by service.
pub const TABLE: &[(&str, &[(&str, Need)])] = &[
    (
        "millrace.api.v1.PipeService",
        &[
            ("CreatePipe", change(Role::Operator)),
            ("GetPipe", see(Role::Viewer)),
            ("ListPipes", see(Role::Viewer)),
            ("UpdatePipe", change(Role::Operator)),
            ("DeletePipe", change(Role::Operator)),
            ("WatchPipe", see(Role::Viewer)),
            ("ListPipeEvents", see(Role::Viewer)),
            ("ResetPosition", change(Role::Operator)),
            ("ListPipeRevisions", see(Role::Viewer)),
            ("RollbackPipe", change(Role::Operator)),
        ],
    ),
    (
        "millrace.api.v1.CredentialService",
        &[
            ("CreateCredential", change(Role::Admin)),
            ("GetCredential", see(Role::Viewer)),
            ("ListCredentials", see(Role::Viewer)),
            ("DeleteCredential", change(Role::Admin)),
        ],
    ),
    // Calls AWS with the identities of credentials.
    (
        "millrace.api.v1.AccessService",
        &[
            ("GetAwsPolicies", see(Role::Operator)),
            ("CheckAccess", see(Role::Operator)),
        ],
    ),
    // Shows records, and what users of ClickHouse see.
    (
        "millrace.api.v1.DiscoveryService",
        &[
            ("ListStreams", see(Role::Operator)),
            ("SampleRecords", see(Role::Operator)),
            ("InferSchema", see(Role::Operator)),
            ("ListDatabases", see(Role::Operator)),
            ("ListTables", see(Role::Operator)),
            ("DescribeTable", see(Role::Operator)),
            ("PreviewRows", see(Role::Operator)),
            ("SampleRows", see(Role::Operator)),
        ],
    ),
    // Shows what could not be mapped, as it came.
    (
        "millrace.api.v1.RejectedRecordService",
        &[
            ("ListRejectedRecords", see(Role::Operator)),
            ("CountRejectedRecords", see(Role::Operator)),
            ("DiscardRejectedRecords", change(Role::Operator)),
        ],
    ),
    (
        "millrace.api.v1.TokenService",
        &[
            ("CreateToken", change(Role::Admin)),
            ("GetToken", see(Role::Admin)),
            ("ListTokens", see(Role::Admin)),
            ("RevokeToken", change(Role::Admin)),
        ],
    ),
    // A worker is given credentials.
    (
        "millrace.worker.v1.WorkerService",
        &[
            ("Session", see(Role::Worker)),
            ("PrepareBatch", see(Role::Worker)),
            ("CommitBatch", see(Role::Worker)),
            ("ReplaceBatch", see(Role::Worker)),
        ],
    ),
    // Load balancers and probes have no token, and learn who leads.
    (
        "grpc.health.v1.Health",
        &[("Check", ANYBODY), ("Watch", ANYBODY), ("List", ANYBODY)],
    ),
    // The protocol is public.
    (
        "grpc.reflection.v1.ServerReflection",
        &[("ServerReflectionInfo", ANYBODY)],
    ),
];

/// What the method of a path such as `/package.Service/Method` needs; `None` if nobody may call it.
#[must_use]
pub fn needed(path: &str) -> Option<Need> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let (_, methods) = TABLE.iter().find(|(name, _)| *name == service)?;
    methods.iter().find(|(name, _)| *name == method).map(|(_, need)| *need)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use millrace_proto::DESCRIPTOR_POOL;

    use super::*;

    fn in_table() -> BTreeSet<String> {
        let methods = TABLE.iter().flat_map(|(service, methods)| {
            let path = move |(method, _): &(&str, Need)| format!("/{service}/{method}");
            methods.iter().map(path)
        });
        methods.collect()
    }

    /// reliability.md D: default deny, and nobody forgets a method.
    #[test]
    fn every_method_of_the_protocol_is_in_the_table_and_no_other() {
        let described: BTreeSet<String> = DESCRIPTOR_POOL
            .services()
            .flat_map(|service| {
                let methods = service
                    .methods()
                    .map(|method| format!("/{}/{}", service.full_name(), method.name()));
                methods.collect::<Vec<_>>()
            })
            .collect();
        let ours: BTreeSet<String> = in_table()
            .into_iter()
            .filter(|path| !path.starts_with("/grpc."))
            .collect();
        assert_eq!(ours, described);
    }

    #[test]
    fn what_is_not_in_the_table_nobody_may_call() {
        for path in in_table() {
            assert!(needed(&path).is_some(), "{path}");
            assert_eq!(needed(&path[1..]), None);
            assert_eq!(needed(&format!("{path}x")), None);
            assert_eq!(needed(&path.to_lowercase()), None);
        }
        for path in [
            "",
            "/",
            "//",
            "/a/b",
            "/millrace.api.v1.PipeService/",
            "/millrace.api.v1.PipeService/Nothing",
        ] {
            assert_eq!(needed(path), None, "{path}");
        }
    }

    #[test]
    fn roles_are_ordered_and_a_workers_is_apart() {
        use Role::{Admin, Operator, Viewer, Worker};
        for (role, may) in [
            (Viewer, &[Viewer][..]),
            (Operator, &[Viewer, Operator]),
            (Admin, &[Viewer, Operator, Admin]),
            (Worker, &[Worker]),
        ] {
            for needed in [Viewer, Operator, Admin, Worker] {
                assert_eq!(role.may(needed), may.contains(&needed), "{role:?} {needed:?}");
            }
            assert_eq!(role.as_str().parse(), Ok(role));
        }
    }
}
