//! The destinations of reports: files, standard output, or both.
//!
//! Every file is opened before there is anything to write, so that an unwritable file is found before a run rather than
//! after it. A file replaces an older file of the same name only once it is complete, so a run that fails leaves the
//! older file unchanged.

use crate::failure::Failure;
use crate::terminal;
use rustix::fs::{Access, AtFlags, CWD, OFlags, access, linkat};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// The number of names to try for a temporary file before its directory counts as unusable.
const NAMES_MAX: u32 = 100;

/// Writes a text to its destination, if it has one.
pub(crate) fn put(
    place: Option<Destination>,
    text: impl FnOnce() -> Result<String, Failure>,
) -> Result<(), Failure> {
    place.map_or(Ok(()), |place| place.write(&text()?))
}

/// A place for a text. It is known to be writable before the text exists.
#[derive(Debug)]
pub(crate) struct Destination {
    /// The path as it was given.
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Stdout,
    /// A file that will replace any existing file at `target`.
    Beside {
        file: File,
        temporary: Temporary,
        target: PathBuf,
    },
    /// A destination that cannot be replaced: a device, a pipe, or a file in a directory that does not allow new files.
    Itself,
}

/// The temporary name of a file that is incomplete. If the file system supports unnamed files, this is `None`, and a
/// killed process does not leave the file behind.
#[derive(Debug)]
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It may have been removed.
            let _ = fs::remove_file(path);
        }
    }
}

impl Destination {
    /// Opens the places that were given for `flags`, and the places of `exports`, each with its flag. Does not write
    /// anything yet.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] if two of them are the same place, and [`Failure::Environment`] if a place cannot be written.
    pub(crate) fn open_all<const N: usize>(
        flags: [(&str, Option<PathBuf>); N],
        exports: Vec<(String, PathBuf)>,
    ) -> Result<([Option<Destination>; N], Vec<Destination>), Failure> {
        let of_exports = exports.iter().map(|(flag, path)| (flag.clone(), Some(path.clone())));
        let named = flags.iter().map(|(flag, path)| ((*flag).to_owned(), path.clone()));
        let mut known: Vec<(String, Identity)> = Vec::new();
        for (flag, path) in named.chain(of_exports) {
            let Some(identity) = path.as_deref().and_then(Identity::of) else { continue };
            if let Some((other, _)) = known.iter().find(|(_, own)| *own == identity) {
                return Err(Failure::Usage(match identity {
                    Identity::Stdout => format!(
                        "{other} - and {flag} - would be mixed on standard output: write all but one to a file"
                    ),
                    _ => format!(
                        "{other} and {flag} name one file, {}: name another for one of them",
                        path.as_deref().unwrap_or(Path::new("")).display()
                    ),
                }));
            }
            known.push((flag, identity));
        }
        let mut places = [const { None }; N];
        for (place, (_, path)) in places.iter_mut().zip(flags) {
            *place = path.map(Destination::open).transpose()?;
        }
        let of_exports = exports.into_iter().map(|(_, path)| Destination::open(path));
        let of_exports = of_exports.collect::<Result<_, _>>()?;
        Ok((places, of_exports))
    }

    /// Opens a place.
    fn open(path: PathBuf) -> Result<Destination, Failure> {
        let place = Place::open(&path).map_err(|error| cannot_write(&path, &error))?;
        Ok(Destination { path, place })
    }

    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self.place, Place::Stdout)
    }

    /// Writes a complete text to the place.
    pub(crate) fn write(self, text: &str) -> Result<(), Failure> {
        let Destination { path, place } = self;
        let written = match place {
            Place::Stdout => return terminal::print(text),
            Place::Beside { mut file, temporary, target } => {
                file.write_all(text.as_bytes()).and_then(|()| replace(&file, temporary, &target))
            }
            Place::Itself => fs::write(&path, text),
        };
        match written {
            // The reader has read as much as it wants.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(|error| cannot_write(&path, &error)),
        }
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::Environment(format!(
        "cannot write {}: {error}: name a file that can be written",
        path.display()
    ))
}

/// The identity of a place, which is the same for all of its names.
#[derive(Debug, PartialEq)]
enum Identity {
    Stdout,
    /// An existing file, by device and inode.
    File(u64, u64),
    /// A file that does not exist yet.
    Name(PathBuf),
}

impl Identity {
    /// Returns the identity of a path; `None` for a place that several texts may go to, such as a device.
    fn of(path: &Path) -> Option<Identity> {
        if path.as_os_str() == "-" {
            return Some(Identity::Stdout);
        }
        match fs::metadata(path) {
            Ok(found) if found.is_file() => Some(Identity::File(found.dev(), found.ino())),
            Ok(_) => None,
            Err(_) => {
                let target = followed(path);
                let directory = fs::canonicalize(directory_of(&target));
                Some(Identity::Name(match (directory, target.file_name()) {
                    (Ok(directory), Some(name)) => directory.join(name),
                    _ => target,
                }))
            }
        }
    }
}

impl Place {
    fn open(path: &Path) -> io::Result<Place> {
        if path.as_os_str() == "-" {
            return Ok(Place::Stdout);
        }
        let found = match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Place::beside(followed(path));
            }
            found => found?,
        };
        if found.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        access(path, Access::WRITE_OK)?;
        // Paths below these directories are views of open files that their owners continue to use.
        let is_view = ["/dev", "/proc"].iter().any(|above| path.starts_with(above));
        if !found.is_file() || is_view {
            return Ok(Place::Itself);
        }
        let Ok(place) = Place::beside(fs::canonicalize(path)?) else {
            return Ok(Place::Itself);
        };
        if let Place::Beside { file, .. } = &place {
            // These may fail for lack of permission. The file is written in any case.
            let _ = fchown(file, Some(found.uid()), Some(found.gid()));
            let _ = file.set_permissions(Permissions::clone(&found.permissions()));
        }
        Ok(place)
    }

    /// Opens a file that will get the name `target`.
    fn beside(target: PathBuf) -> io::Result<Place> {
        let mut options = OpenOptions::new();
        options.write(true);
        let flags = OFlags::TMPFILE.bits().cast_signed();
        if let Ok(file) = options.clone().custom_flags(flags).open(directory_of(&target)) {
            return Ok(Place::Beside { file, temporary: Temporary(None), target });
        }
        let (name, file) = with_free_name(&target, |name| options.create_new(true).open(name))?;
        Ok(Place::Beside { file, temporary: Temporary(Some(name)), target })
    }
}

/// Gives `file` the name `target`.
fn replace(file: &File, mut temporary: Temporary, target: &Path) -> io::Result<()> {
    if temporary.0.is_none() {
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        let link = |name: &Path| Ok(linkat(CWD, &own, CWD, name, AtFlags::SYMLINK_FOLLOW)?);
        temporary.0 = Some(with_free_name(target, link)?.0);
    }
    let Some(name) = &temporary.0 else { unreachable!("it was named above") };
    fs::rename(name, target)?;
    temporary.0 = None;
    Ok(())
}

/// Creates a file with an unused name next to `target`.
fn with_free_name<T>(
    target: &Path,
    mut make: impl FnMut(&Path) -> io::Result<T>,
) -> io::Result<(PathBuf, T)> {
    let own = target.file_name().unwrap_or_default().to_string_lossy();
    let mut result = Err(ErrorKind::AlreadyExists.into());
    for number in 0..NAMES_MAX {
        let name = target.with_file_name(format!(".{own}.{}-{number}.tmp", std::process::id()));
        result = make(&name).map(|made| (name, made));
        match &result {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            _ => break,
        }
    }
    result
}

/// Returns the target of a symbolic link, which may not exist yet, and any other path as it is.
fn followed(path: &Path) -> PathBuf {
    fs::read_link(path).map_or_else(|_| path.to_owned(), |to| directory_of(path).join(to))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        None => Path::new("/"),
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
    }
}

/// Writes text to a file, or to standard output if the path is `-`.
pub fn write_to(path: &Path, text: &str) -> Result<(), Failure> {
    Destination::open(path.to_owned())?.write(text)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A directory that is removed at the end of a test.
    pub(in crate::load) struct Directory(pub(in crate::load) PathBuf);

    impl Directory {
        pub(in crate::load) fn new(name: &str) -> Directory {
            let name = format!("ringtally-output-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Directory(path)
        }

        pub(in crate::load) fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        pub(in crate::load) fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
            let mut names: Vec<String> =
                entries.map(|entry| name(entry).into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_is_replaced_once_it_is_whole_and_kept_if_nothing_is_written() {
        let directory = Directory::new("replaced");
        let file = directory.file("report");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        let link = directory.file("link");
        std::os::unix::fs::symlink("report", &link).unwrap();
        drop(Destination::open(file.clone()).unwrap());
        assert_eq!(
            (fs::read_to_string(&file).unwrap(), directory.names().len()),
            ("old".into(), 2)
        );
        for (name, text) in [(&file, "new"), (&link, "newer")] {
            Destination::open(name.clone()).unwrap().write(text).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
        }
        assert!(link.is_symlink());
        // The link's target does not exist yet, and its name is free.
        let later = directory.file("later");
        std::os::unix::fs::symlink("target", &later).unwrap();
        write_to(&later, "text").unwrap();
        assert_eq!(fs::read_to_string(directory.file("target")).unwrap(), "text");
        assert_eq!(directory.names(), ["later", "link", "report", "target"]);
    }

    /// Temporary files have names on a file system without unnamed files.
    #[test]
    fn a_temporary_file_with_a_name_is_gone_at_the_end() {
        let directory = Directory::new("named");
        let target = directory.file("report");
        for is_written in [false, true] {
            let make = |name: &Path| OpenOptions::new().write(true).create_new(true).open(name);
            let (name, mut file) = with_free_name(&target, make).unwrap();
            let (second, _) = with_free_name(&target, make).unwrap();
            assert!(name != second && name.parent() == target.parent());
            drop(Temporary(Some(second)));
            let temporary = Temporary(Some(name));
            if is_written {
                file.write_all(b"text").unwrap();
                replace(&file, temporary, &target).unwrap();
            }
        }
        assert_eq!(directory.names(), ["report"]);
    }

    #[test]
    fn what_cannot_be_written_is_known_before_there_is_a_text() {
        let directory = Directory::new("unwritable");
        for path in [directory.file("none/report"), directory.0.clone(), "/proc/version".into()] {
            // Root may write files that other users cannot.
            if path.starts_with("/proc") && rustix::process::geteuid().is_root() {
                continue;
            }
            let why = Destination::open(path).map(|_| ()).unwrap_err();
            assert_eq!(why.exit_code(), 3, "{why}");
            assert!(why.to_string().starts_with("cannot write "), "{why}");
        }
        // A place that can be opened but not written fails at the write.
        let full = Destination::open("/dev/full".into()).unwrap().write("text").unwrap_err();
        assert_eq!(full.exit_code(), 3);
    }
}
