//! Passwords in a file: `~/.pgpass`, or the file that `PGPASSFILE` names (PostgreSQL documentation, section 34.16).

use super::target::{Host, Password, Target};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The most bytes of a password file that are read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Returns the password for a host of a target: the target's own, or the password in the file. The file is read again for every
/// connection, so a password can be changed while a server runs. The second value is the reason why a file was not used.
pub(super) fn find(target: &Target, host: &Host) -> (Option<Password>, Option<String>) {
    if target.password.is_some() {
        return (target.password.clone(), None);
    }
    match target.passfile.as_deref().map(read) {
        None | Some(Ok(None)) => (None, None),
        Some(Ok(Some(lines))) => (search(&lines, target, host), None),
        Some(Err(why)) => (None, Some(why)),
    }
}

/// Returns the text of a password file; `None` if the file does not exist.
fn read(path: &Path) -> Result<Option<String>, String> {
    let shown = path.display();
    let opened = std::fs::File::options()
        .read(true)
        // Reading a pipe would block.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("the password file {shown} cannot be opened ({error})")),
    };
    let cannot_read = |error| format!("the password file {shown} cannot be read ({error})");
    let metadata = file.metadata().map_err(cannot_read)?;
    if !metadata.is_file() {
        return Err(format!("the password file {shown} is not a plain file, and was ignored"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "the password file {shown} can be read by others, and was ignored: run chmod 600 {shown}"
        ));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(cannot_read)?;
    Ok(Some(text))
}

/// Returns the password of the first line that matches: `host:port:database:user:password`.
fn search(text: &str, target: &Target, host: &Host) -> Option<Password> {
    // libpq looks for a server's socket under this name, too.
    let names =
        [host.name.as_str(), if host.is_socket() { "localhost" } else { host.name.as_str() }];
    let port = host.port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line);
        let [name, its_port, database, user, password] = fields.as_slice() else { return None };
        let fits = |field: &str, value: &str| field == "*" || field == value;
        let is_it = names.iter().any(|own| fits(name, own))
            && fits(its_port, &port)
            && fits(database, &target.database)
            && fits(user, &target.user);
        is_it.then(|| Password(password.clone()))
    })
}

/// Returns the fields of a line. `\:` stands for a colon and `\\` for a backslash. In the last field, a colon is an
/// ordinary character.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        let count = fields.len();
        let last = &mut fields[count - 1];
        match character {
            '\\' => last.extend(characters.next()),
            ':' if count < 5 => fields.push(String::new()),
            other => last.push(other),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn target(file: &Path) -> Target {
        let text = format!("postgres://ana@db:5433,%2Frun/tally?passfile={}", file.display());
        Target::parse_with(&text, &|_| None).unwrap()
    }

    fn password(text: &str) -> Option<String> {
        let target = target(Path::new("/nowhere"));
        search(text, &target, &target.hosts[0]).map(|password| password.0)
    }

    #[test]
    fn the_first_line_that_fits_has_the_password() {
        for (text, expected) in [
            ("db:5433:tally:ana:s3cret", Some("s3cret")),
            ("*:*:*:*:a\\:b\\\\c:d", Some("a:b\\c:d")),
            (
                "db:5432:tally:ana:no\nother:5433:tally:ana:no\ndb:*:tally:ana:yes\n*:*:*:*:no",
                Some("yes"),
            ),
            ("#*:*:*:*:no\n*:*:*:bo:no\n*:*:x:*:no", None),
            ("db:5433:tally:ana", None),
            ("", None),
        ] {
            assert_eq!(password(text).as_deref(), expected, "{text}");
        }
        let target = target(Path::new("/nowhere"));
        let of_socket = |text| search(text, &target, &target.hosts[1]).map(|password| password.0);
        assert_eq!(of_socket("localhost:5433:*:*:a"), None, "its port is 5432");
        assert_eq!(of_socket("localhost:5432:*:*:a").as_deref(), Some("a"));
        assert_eq!(of_socket("/run:*:*:*:b").as_deref(), Some("b"));
        assert_eq!(of_socket("localhost:*:*:*:c").as_deref(), Some("c"));
    }

    #[test]
    fn a_file_that_others_can_read_is_not_used() {
        let folder: PathBuf =
            std::env::temp_dir().join(format!("ringtally-pass-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("pgpass");
        let target = target(&file);
        let host = &target.hosts[0];
        assert_eq!(find(&target, host), (None, None), "there is no file");
        std::fs::write(&file, "*:*:*:*:s3cret\n").unwrap();
        for (mode, is_used) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let (found, why) = find(&target, host);
            assert_eq!((found.is_some(), why.is_none()), (is_used, is_used), "{mode:o}");
            assert!(why.is_none_or(|why| why.contains("chmod 600") && !why.contains("s3cret")));
        }
        let own = Target::parse_with("postgres://ana:own@db/x", &|_| None).unwrap();
        assert_eq!(find(&own, host).0, Some(Password("own".into())));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
