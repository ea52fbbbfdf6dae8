//! Checks of the things that a store depends on: the file system and the device of its file, and whether they keep the promise
//! of fsync(2).

use super::Check;
use super::machine::Machine;
use procfs::process::MountInfo;
use rustix::fs::{AtFlags, CWD, StatxFlags, statvfs, statx};
use std::io;
use std::path::{Path, PathBuf};

/// Space for as many users as --max-users allows by default, with ids of 100 bytes.
const FREE_BYTES: u64 = 1024 * 1024 * 1024;
/// The most layers of devices, such as encryption over RAID, below a file system.
const LAYERS_MAX: usize = 8;

/// File systems whose files are on another machine.
const NETWORK: [&str; 12] = [
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "lustre", "nfs", "nfs4", "orangefs", "smb3",
    "smbfs",
];
/// Mount options that omit the cache flushes that fsync(2) relies on, with a value if they take one: ext4(5), xfs(5) before
/// Linux 4.19, btrfs(5), f2fs, and reiserfs. A volatile overlay omits all of fsync.
const WITHOUT_BARRIERS: [(&str, Option<&str>); 5] = [
    ("nobarrier", None),
    ("barrier", Some("0")),
    ("barrier", Some("none")),
    ("fsync_mode", Some("nobarrier")),
    ("volatile", None),
];

/// The file system of a store that exists or would be created.
pub(super) struct Place {
    /// The file if it exists; otherwise, its directory.
    path: PathBuf,
    /// The number of its mount, if known.
    mount_id: Option<u64>,
    space: io::Result<Space>,
}

/// The space and the number of files left for this user.
struct Space {
    free_bytes: u64,
    /// `None` if the number of files is not limited.
    free_inodes: Option<u64>,
}

impl Place {
    /// Returns the place of a store at `file`. Fails if its directory cannot be examined.
    pub(super) fn of(file: &Path) -> io::Result<Place> {
        let path = match file.canonicalize() {
            Ok(path) => path,
            Err(_) => match file.parent() {
                Some(folder) if folder != Path::new("") => folder.canonicalize()?,
                _ => Path::new(".").canonicalize()?,
            },
        };
        let status = statx(CWD, &path, AtFlags::empty(), StatxFlags::MNT_ID)?;
        let has_mount_id = status.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        let space = statvfs(&path).map_err(io::Error::from).map(|space| Space {
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            free_inodes: (space.f_files > 0).then_some(space.f_favail),
        });
        Ok(Place { path, mount_id: has_mount_id.then_some(status.stx_mnt_id), space })
    }
}

/// Checks a store at `file`.
pub(super) fn checks(machine: &Machine, file: &Path) -> Vec<Check> {
    match Place::of(file) {
        Ok(place) => of_place(machine, &place),
        Err(error) => vec![Check::warn(
            "store folder",
            format!("the folder of {} cannot be examined: {error}", file.display()),
            "create it, or pass --store with a file in a folder that exists",
        )],
    }
}

fn of_place(machine: &Machine, place: &Place) -> Vec<Check> {
    let mut checks = match place.mount_id.and_then(|id| machine.mount(id)) {
        Some(mount) => vec![file_system(&mount), options(&mount), device(machine, &mount)],
        None => {
            let reason =
                format!("the kernel does not say what {} is mounted on", place.path.display());
            let names = ["store file system", "store mount options", "store device"];
            names.map(|name| Check::skip(name, reason.as_str())).into()
        }
    };
    checks.extend([free_bytes(&place.space), free_inodes(&place.space)]);
    checks
}

fn file_system(mount: &MountInfo) -> Check {
    let name = "store file system";
    let kind = mount.fs_type.as_str();
    let on = format!("{kind} on {}", mount.mount_point.display());
    if kind == "tmpfs" || kind == "ramfs" {
        let value = format!("{on}: it is in memory");
        return Check::warn(name, value, "keep the store on a disk: a power failure clears memory");
    }
    if NETWORK.contains(&kind) {
        let value = format!("{on}: it is on another machine");
        let fix = "keep the store on a local disk, because what fsync promises here depends on the settings of \
                   that machine; to share totals between machines, pass --store with a database";
        return Check::warn(name, value, fix);
    }
    if kind == "overlay" {
        let value = format!("{on}: the upper layer of a container, or of a live system");
        let fix = "mount a volume for the store, because this layer is removed with its container";
        return Check::warn(name, value, fix);
    }
    if kind == "virtiofs" || kind.starts_with("fuse") {
        let value = format!("{on}: another process serves it");
        let fix =
            "keep the store on a local disk, because that process decides what fsync promises here";
        return Check::warn(name, value, fix);
    }
    Check::ok(name, on)
}

/// Checks whether the file system is writable, and whether it passes on the flushes that fsync requests.
fn options(mount: &MountInfo) -> Check {
    let name = "store mount options";
    let has = |option: &str, value: Option<&str>| {
        let own = mount.super_options.get(option).or_else(|| mount.mount_options.get(option));
        own.is_some_and(|own| own.as_deref() == value)
    };
    let at = mount.mount_point.display();
    if mount.mount_options.contains_key("ro") || mount.super_options.contains_key("ro") {
        let fix = format!("run mount -o remount,rw {at}, or keep the store elsewhere");
        return Check::warn(name, "read-only: no store can be written here", fix);
    }
    if let Some((option, value)) = WITHOUT_BARRIERS.iter().find(|(name, value)| has(name, *value)) {
        let option = value.map_or((*option).into(), |value| format!("{option}={value}"));
        let value = format!("{option}: a power failure can take back what fsync had written");
        return Check::warn(name, value, format!("mount {at} without {option}"));
    }
    if mount.fs_type == "zfs" {
        return Check::skip(
            name,
            "zfs get sync tells whether fsync is obeyed, the kernel does not",
        );
    }
    // A file that grew just before a crash may then contain the data of deleted files. A store is not affected, because
    // fsync(2) still writes data before the journal refers to it.
    let value = match has("data", Some("writeback")) {
        true => "read-write, nothing drops barriers; data=writeback, with which fsync still holds",
        false => "read-write, nothing drops barriers",
    };
    Check::ok(name, value)
}

/// Checks whether the kernel flushes the caches of the devices below a file system.
fn device(machine: &Machine, mount: &MountInfo) -> Check {
    let name = "store device";
    let Some(top) = BlockDevice::of(machine, mount) else {
        return Check::skip(name, format!("{} has no block device here", mount.fs_type));
    };
    let devices = top.with_those_below();
    if let Some(memory) = devices.iter().find(|device| device.is_in_memory()) {
        let value = format!("{}: it is in memory", memory.name);
        return Check::warn(name, value, "keep the store on a disk: a power failure clears memory");
    }
    if let Some(device) = devices.iter().find(|device| device.has_unflushed_cache()) {
        let value =
            format!("{}: it has a write cache, which the kernel never flushes", device.name);
        let fix = format!("run echo 'write back' > /sys/block/{}/queue/write_cache", device.name);
        return Check::warn(name, value, fix);
    }
    let described: Option<Vec<String>> = devices.iter().map(BlockDevice::describe).collect();
    match described {
        Some(described) => Check::ok(name, described.join(", on ")),
        None => {
            Check::skip(name, format!("the kernel does not say whether {} has a cache", top.name))
        }
    }
}

/// A disk, or something that looks like one.
#[derive(Clone)]
struct BlockDevice<'a> {
    machine: &'a Machine,
    /// Its directory in sysfs.
    folder: String,
    name: String,
}

impl<'a> BlockDevice<'a> {
    /// Returns the device of a mount.
    fn of(machine: &'a Machine, mount: &MountInfo) -> Option<BlockDevice<'a>> {
        // A file system over several devices, such as btrfs, has its own number, and its mount names a single device.
        let folder = match mount.majmin.starts_with("0:") {
            false => format!("sys/dev/block/{}", mount.majmin),
            true => {
                let source = mount.mount_source.as_deref()?.strip_prefix('/')?;
                format!("sys/class/block/{}", machine.final_name(source)?)
            }
        };
        BlockDevice::at(machine, folder)
    }

    /// Returns the disk with this directory in sysfs, or the disk of this partition.
    fn at(machine: &'a Machine, folder: String) -> Option<BlockDevice<'a>> {
        let folder = match machine.exists(&format!("{folder}/partition")) {
            true => folder + "/..",
            false => folder,
        };
        let uevent = machine.text(&format!("{folder}/uevent"))?;
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?.to_owned();
        Some(BlockDevice { machine, folder, name })
    }

    /// Returns this device and the devices that it is made of, such as the disks of a RAID.
    fn with_those_below(&self) -> Vec<BlockDevice<'a>> {
        let mut found = vec![self.clone()];
        let mut layer = vec![self.clone()];
        for _ in 0..LAYERS_MAX {
            let below = layer.iter().flat_map(|device| {
                let folder = format!("{}/slaves", device.folder);
                let names = self.machine.names(&folder).into_iter();
                names.filter_map(move |name| {
                    BlockDevice::at(device.machine, format!("{folder}/{name}"))
                })
            });
            layer = below.collect();
            for device in &layer {
                if found.iter().all(|known| known.name != device.name) {
                    found.push(device.clone());
                }
            }
        }
        found
    }

    fn text(&self, file: &str) -> Option<String> {
        self.machine.text(&format!("{}/{file}", self.folder))
    }

    fn is_in_memory(&self) -> bool {
        let number = |prefix| self.name.strip_prefix(prefix)?.parse::<u32>().ok();
        number("ram").or_else(|| number("zram")).is_some()
    }

    /// Reports whether the device reports a volatile cache although the kernel has been instructed to assume that it does not
    /// have one (`queue/write_cache` in Documentation/ABI/stable/sysfs-block), so that fsync does not flush it.
    fn has_unflushed_cache(&self) -> bool {
        if self.text("queue/write_cache").as_deref() != Some("write through") {
            return false;
        }
        // Linux uses FUA, which writes past the cache, only with devices that have a cache.
        let has_fua = self.text("queue/fua").as_deref() == Some("1");
        // The cache modes that virtio and SCSI disks report are in these files.
        let scsi = format!("{}/device/scsi_disk", self.folder);
        let of_scsi =
            self.machine.names(&scsi).into_iter().map(|id| format!("{scsi}/{id}/cache_type"));
        let mut files = of_scsi.chain([format!("{}/cache_type", self.folder)]);
        has_fua || files.any(|file| self.machine.text(&file).as_deref() == Some("write back"))
    }

    /// Describes the device and its cache; `None` if that is unknown.
    fn describe(&self) -> Option<String> {
        let cache = match self.text("queue/write_cache")?.as_str() {
            "write back" => "its write cache is flushed",
            "write through" => "it reports no write cache",
            _ => return None,
        };
        let file = self.text("loop/backing_file");
        let file = file.map_or(String::new(), |file| format!(" in the file {file}"));
        Some(format!("{}{file}: {cache}", self.name))
    }
}

fn free_bytes(space: &io::Result<Space>) -> Check {
    let name = "store free space";
    match space {
        Ok(space) => Check::warn_if(
            space.free_bytes < FREE_BYTES,
            name,
            format!("{} MiB", space.free_bytes >> 20),
            "free 1 GiB or more: 10 million users with ids of 100 bytes take that, and a store that cannot grow \
             ends the server",
        ),
        Err(error) => Check::skip(name, error.to_string()),
    }
    .momentary()
}

fn free_inodes(space: &io::Result<Space>) -> Check {
    let name = "store free inodes";
    match space {
        Ok(Space { free_inodes: None, .. }) => Check::ok(name, "no limit"),
        Ok(Space { free_inodes: Some(free), .. }) => Check::warn_if(
            *free == 0,
            name,
            free.to_string(),
            "delete files that are not needed: a new store needs an inode",
        ),
        Err(error) => Check::skip(name, error.to_string()),
    }
    .momentary()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::super::machine::fixture::Fixture;
    use super::*;

    const MOUNTS: &str = "proc/self/mountinfo";
    const ROOM: Space = Space { free_bytes: FREE_BYTES, free_inodes: Some(1) };

    /// Returns the checks of a store whose mount, with the number 7, is described by `mount` from its device on.
    fn on(mount: &str, files: &[(&str, &str)]) -> Vec<Check> {
        let mounts = format!("1 0 8:1 / / rw - ext4 /dev/sda1 rw,nobarrier\nodd\n7 1 {mount}\n");
        let fixture = Fixture::new(&[&[(MOUNTS, mounts.as_str())], files].concat());
        let place = Place { path: "/store".into(), mount_id: Some(7), space: Ok(ROOM) };
        let checks = of_place(&fixture.machine(), &place);
        for check in &checks {
            assert_eq!(check.fix.is_some(), check.verdict == Verdict::Warn, "{check:?}");
        }
        checks
    }

    /// Returns the names and the findings of the checks that are warnings.
    fn warnings(checks: &[Check]) -> Vec<(&str, &str)> {
        let warnings = checks.iter().filter(|check| check.verdict == Verdict::Warn);
        warnings.map(|check| (check.name.as_str(), check.value.as_str())).collect()
    }

    #[test]
    fn a_local_disk_with_barriers_is_good() {
        let disk = [
            ("sys/dev/block/8:1/partition", "1"),
            ("sys/dev/block/uevent", "MAJOR=8\nDEVNAME=sda\n"),
            ("sys/dev/block/queue/write_cache", "write back\n"),
            ("sys/dev/block/queue/fua", "1\n"),
        ];
        for options in ["rw", "rw,barrier=1", "rw,data=ordered", "rw,data=writeback"] {
            let checks = on(&format!("8:1 / /data rw,noatime - ext4 /dev/sda1 {options}"), &disk);
            let all_ok = checks.iter().all(|check| check.verdict == Verdict::Ok);
            assert!(all_ok && checks.len() == 5, "{options}: {checks:?}");
            assert_eq!(checks[0].value, "ext4 on /data");
            assert_eq!(checks[1].value.contains("writeback"), options.contains("writeback"));
            assert_eq!(checks[2].value, "sda: its write cache is flushed");
        }
    }

    #[test]
    fn a_file_system_that_does_not_keep_what_fsync_promises_is_a_warning() {
        for (kind, what) in [
            ("tmpfs", "in memory"),
            ("ramfs", "in memory"),
            ("nfs4", "on another machine"),
            ("cifs", "on another machine"),
            ("9p", "on another machine"),
            ("overlay", "the upper layer of a container"),
            ("fuse.sshfs", "another process"),
            ("fuseblk", "another process"),
            ("virtiofs", "another process"),
        ] {
            let checks = on(&format!("0:40 / /data rw shared:1 - {kind} source rw"), &[]);
            let [("store file system", value)] = warnings(&checks)[..] else {
                panic!("{kind}: {checks:?}");
            };
            assert!(value.starts_with(&format!("{kind} on /data: ")) && value.contains(what));
            assert_eq!(checks[2].verdict, Verdict::Skip, "{kind} has no device");
        }
    }

    #[test]
    fn options_that_drop_barriers_and_read_only_mounts_are_warnings() {
        for (mount, found) in [
            ("8:1 / /d rw - ext4 /dev/sda1 rw,nobarrier", "nobarrier: "),
            ("8:1 / /d rw - ext4 /dev/sda1 rw,barrier=0", "barrier=0: "),
            ("8:1 / /d rw - reiserfs /dev/sda1 rw,barrier=none", "barrier=none: "),
            ("8:1 / /d rw - f2fs /dev/sda1 rw,fsync_mode=nobarrier", "fsync_mode=nobarrier: "),
            ("0:9 / /d rw - overlay overlay rw,volatile", "volatile: "),
            ("8:1 / /d ro - ext4 /dev/sda1 rw", "read-only"),
            ("8:1 / /d rw - ext4 /dev/sda1 ro", "read-only"),
        ] {
            let checks = on(mount, &[]);
            assert_eq!(checks[1].verdict, Verdict::Warn, "{mount}");
            assert!(checks[1].value.starts_with(found), "{mount}: {:?}", checks[1]);
        }
        let zfs = on("0:50 / /d rw - zfs pool/data rw,xattr", &[]);
        assert_eq!(zfs[1].verdict, Verdict::Skip);
    }

    #[test]
    fn a_cache_that_the_kernel_was_told_to_ignore_is_a_warning() {
        let with = |files: &[(&str, &str)]| {
            let device = [
                ("sys/dev/block/8:0/uevent", "DEVNAME=sda\n"),
                ("sys/dev/block/8:0/queue/write_cache", "write through\n"),
            ];
            let checks = on("8:0 / /d rw - xfs /dev/sda rw", &[&device, files].concat());
            checks[2].clone()
        };
        let fua = "sys/dev/block/8:0/queue/fua";
        let virtio = "sys/dev/block/8:0/cache_type";
        let scsi = "sys/dev/block/8:0/device/scsi_disk/0:0:0:0/cache_type";
        for honest in [&[][..], &[(fua, "0")], &[(virtio, "write through")], &[(scsi, "none")]] {
            let check = with(honest);
            assert_eq!(check.value, "sda: it reports no write cache", "{honest:?}");
            assert_eq!(check.verdict, Verdict::Ok);
        }
        for forced in [(fua, "1"), (virtio, "write back"), (scsi, "write back")] {
            let check = with(&[forced]);
            assert_eq!(check.verdict, Verdict::Warn, "{forced:?}");
            let fix = check.fix.unwrap();
            assert_eq!(fix, "run echo 'write back' > /sys/block/sda/queue/write_cache");
        }
    }

    #[test]
    fn devices_are_followed_down_to_the_disks() {
        let top = "sys/dev/block/253:0";
        let disk = format!("{top}/slaves/md0/slaves/sdb");
        let file = |folder: &str, name: &str| format!("{folder}/{name}");
        let (md, md_cache) =
            (file(top, "slaves/md0/uevent"), file(top, "slaves/md0/queue/write_cache"));
        let (sdb, cache) = (file(&disk, "uevent"), file(&disk, "queue/write_cache"));
        let (fua, dm) = (file(&disk, "queue/fua"), file(top, "uevent"));
        let dm_cache = file(top, "queue/write_cache");
        let with = |last: &str, name: &str| {
            let files = [
                (dm.as_str(), "DEVNAME=dm-0"),
                (&dm_cache, "write back"),
                (&md, "DEVNAME=md0"),
                (&md_cache, "write back"),
                (&sdb, name),
                (&cache, last),
                (&fua, "1"),
            ];
            on("253:0 / /d rw - ext4 /dev/mapper/data rw", &files)[2].clone()
        };
        let good = with("write back", "DEVNAME=sdb");
        assert_eq!(good.verdict, Verdict::Ok, "{good:?}");
        assert!(good.value.contains("dm-0: ") && good.value.contains(", on sdb: "), "{good:?}");
        let forced = with("write through", "DEVNAME=sdb");
        assert!(forced.verdict == Verdict::Warn && forced.value.starts_with("sdb: "), "{forced:?}");
        let memory = with("write back", "DEVNAME=zram1");
        assert!(memory.verdict == Verdict::Warn && memory.value.contains("memory"), "{memory:?}");
    }

    #[test]
    fn a_file_system_over_several_devices_is_found_by_its_source() {
        let files = [
            ("dev/sdc", ""),
            ("sys/class/block/sdc/uevent", "DEVNAME=sdc\n"),
            ("sys/class/block/sdc/queue/write_cache", "write back"),
        ];
        let checks = on("0:33 /sub /d rw - btrfs /dev/sdc rw,space_cache=v2", &files);
        assert_eq!(checks[2].value, "sdc: its write cache is flushed");
        let without = on("0:33 /sub /d rw - btrfs /dev/sdc rw,space_cache=v2", &[]);
        assert_eq!(without[2].verdict, Verdict::Skip);
        let unknown =
            on("8:0 / /d rw - ext4 /dev/sda rw", &[("sys/dev/block/8:0/uevent", "DEVNAME=x")]);
        assert_eq!(unknown[2].verdict, Verdict::Skip, "no write_cache");
    }

    #[test]
    fn space_and_inodes_are_judged_at_their_limits() {
        let space = |free_bytes, free_inodes| Ok(Space { free_bytes, free_inodes });
        let judge =
            |space: io::Result<Space>| [free_bytes(&space), free_inodes(&space)].map(|c| c.verdict);
        assert_eq!(judge(space(FREE_BYTES, Some(1))), [Verdict::Ok; 2]);
        assert_eq!(judge(space(FREE_BYTES - 1, Some(0))), [Verdict::Warn; 2]);
        assert_eq!(judge(space(FREE_BYTES, None)), [Verdict::Ok; 2]);
        assert_eq!(judge(Err(io::ErrorKind::Unsupported.into())), [Verdict::Skip; 2]);
    }

    #[test]
    fn what_cannot_be_known_is_skipped_and_a_missing_folder_is_a_warning() {
        let nothing = Fixture::new(&[]);
        for mount_id in [None, Some(7)] {
            let place = Place { path: "/store".into(), mount_id, space: Ok(ROOM) };
            let checks = of_place(&nothing.machine(), &place);
            assert!(checks[..3].iter().all(|check| check.verdict == Verdict::Skip), "{checks:?}");
        }
        let checks = checks(&Machine::here(), Path::new("/nonexistent/tally.redb"));
        let [("store folder", value)] = warnings(&checks)[..] else { panic!("{checks:?}") };
        assert!(value.contains("/nonexistent/tally.redb"), "{value}");
    }

    #[test]
    fn a_place_is_found_for_a_file_that_exists_and_for_one_that_does_not() {
        let folder = Fixture::new(&[("tally.redb", "")]);
        let root = folder.root();
        for (file, place) in [("tally.redb", "tally.redb"), ("new.redb", "")] {
            let found = Place::of(&root.join(file)).unwrap();
            assert_eq!(found.path, root.join(place).canonicalize().unwrap());
            assert!(found.space.is_ok());
        }
        assert_eq!(
            Place::of(Path::new("new.redb")).unwrap().path,
            std::env::current_dir().unwrap()
        );
    }
}
