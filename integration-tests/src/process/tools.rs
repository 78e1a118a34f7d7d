//! Where programs are: on `PATH`, or among what `deploy/dev/tools.sh` installed.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The directory into which `deploy/dev/tools.sh` installs: `MILLRACE_TOOLS`, else `millrace/tools` in the user's cache.
#[must_use]
pub fn tools_dir() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("MILLRACE_TOOLS").unwrap_or_else(|| {
        set("XDG_CACHE_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(env::temp_dir)
            .join("millrace/tools")
    })
}

/// The directory of an installed npm package, for example `kinesis-local`, or of a scope such as `@chdb`.
#[must_use]
pub fn npm_package(name: &str) -> Option<PathBuf> {
    // Each part that the installer knows is a tree of its own.
    let parts = fs::read_dir(tools_dir()).ok()?;
    parts
        .flatten()
        .map(|part| part.path().join("node_modules").join(name))
        .find(|package| package.is_dir())
}

/// The Python that can import boto3.
#[must_use]
pub fn python() -> Option<PathBuf> {
    find_program(tools_dir().join("python/bin/python3"))
}

/// The full path of a program on `PATH`; a name with a slash is looked up as it is.
#[must_use]
pub fn find_program(name: impl AsRef<Path>) -> Option<PathBuf> {
    let name = name.as_ref();
    if name.components().count() > 1 {
        return is_executable(name).then(|| name.to_owned());
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_shell_and_nothing_else() {
        let shell = find_program("sh").expect("sh is on PATH");
        assert!(shell.is_absolute());
        assert_eq!(find_program(&shell), Some(shell));
        assert_eq!(find_program("no-such-program-anywhere"), None);
        assert_eq!(find_program("/"), None);
    }
}
