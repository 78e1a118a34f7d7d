//! Where PostgreSQL's programs are, and that the server's user can reach them.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::{Error, io_error, running_as_root};
use crate::process::{find_program, npm_package};

/// Debian's and Ubuntu's packages keep the servers here, one directory a version, off `PATH`.
const DISTRIBUTION: &str = "/usr/lib/postgresql";

/// The programs of one PostgreSQL installation.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) initdb: PathBuf,
    pub(super) postgres: PathBuf,
}

impl Programs {
    /// Finds them. The npm package lies in somebody's home: when the server's user cannot reach into it, the programs are
    /// copied below `scratch`.
    pub(super) fn find(scratch: &Path) -> Result<Self, Error> {
        if let Some(found) = find_program("initdb").and_then(|initdb| Self::beside(&initdb)) {
            return Ok(found);
        }
        let installed = newest_first(Path::new(DISTRIBUTION))
            .into_iter()
            .map(|version| version.join("bin/initdb"));
        if let Some(found) = installed.into_iter().find_map(|initdb| Self::beside(&initdb)) {
            return Ok(found);
        }
        let native = npm_native().ok_or(Error::NotFound)?;
        let initdb = native.join("bin/initdb");
        if !running_as_root() || open_to_all(&initdb) {
            return Self::beside(&initdb).ok_or(Error::NotFound);
        }
        let copy = scratch.join("programs");
        for part in ["bin", "lib", "share"] {
            copy_tree(&native.join(part), &copy.join(part)).map_err(io_error("copy PostgreSQL's programs"))?;
        }
        Self::beside(&copy.join("bin/initdb")).ok_or(Error::NotFound)
    }

    /// `postgres` lies where `initdb` really is (a link on `PATH` may lead there).
    fn beside(initdb: &Path) -> Option<Self> {
        let initdb = find_program(initdb)?.canonicalize().ok()?;
        let postgres = find_program(initdb.with_file_name("postgres"))?;
        Some(Self { initdb, postgres })
    }
}

fn newest_first(dir: &Path) -> Vec<PathBuf> {
    let mut versions: Vec<PathBuf> = fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    versions.sort_by_key(|path| {
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.parse::<u32>().ok());
        std::cmp::Reverse(number)
    });
    versions
}

fn npm_native() -> Option<PathBuf> {
    let packages = fs::read_dir(npm_package("@embedded-postgres")?).ok()?;
    packages
        .flatten()
        .map(|package| package.path().join("native"))
        .find(|native| native.join("bin/postgres").is_file())
}

/// Whether everyone may execute the file and pass through every directory above it.
fn open_to_all(file: &Path) -> bool {
    let Ok(file) = file.canonicalize() else { return false };
    file.ancestors().all(|path| {
        path.metadata()
            .is_ok_and(|meta| meta.permissions().mode() & 0o005 == 0o005)
    })
}

/// Copies a directory with its links, open to everyone; static libraries are of no use at run time.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if source.extension().is_none_or(|extension| extension != "a") {
            fs::copy(&source, &target)?;
            let executable = source.metadata()?.permissions().mode() & 0o100 != 0;
            let mode = if executable { 0o755 } else { 0o644 };
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Scratch;

    #[test]
    fn copies_are_open_to_everyone() {
        let scratch = Scratch::new("copy").expect("a directory");
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        fs::create_dir_all(from.join("deep")).expect("created");
        fs::write(from.join("deep/program"), "x").expect("written");
        fs::set_permissions(from.join("deep/program"), fs::Permissions::from_mode(0o700)).expect("set");
        fs::write(from.join("deep/library.a"), "x").expect("written");
        symlink("program", from.join("deep/link")).expect("linked");

        copy_tree(&from, &to).expect("copied");

        assert_eq!(
            fs::read_link(to.join("deep/link")).expect("a link"),
            Path::new("program")
        );
        let mode = to.join("deep/program").metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(!to.join("deep/library.a").exists());
    }

    #[test]
    fn the_newest_version_comes_first() {
        let scratch = Scratch::new("versions").expect("a directory");
        for version in ["9", "15", "17"] {
            fs::create_dir(scratch.path().join(version)).expect("created");
        }
        let found: Vec<_> = newest_first(scratch.path())
            .into_iter()
            .filter(|path| path.is_dir())
            .collect();
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["17", "15", "9"]);
    }
}
