//! Opening the data file.
//!
//! After a crash redb reads the whole file to find out which of its pages are in use: 1.2 s for a million
//! small records, and 1 GiB, on the machine this was written on. Its quick repair would spare three quarters
//! of that and make a lone commit take 490 µs instead of 140, so it is off. The file grows to about 2.6 times
//! what is in it, and then uses its free pages again; compacting halved it, but took 7.5 s in which nothing
//! else can be done, so that is not done either.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase, StorageBackend, TableError};

use super::OpenError;
use super::layout::{COUNTERS_ROW, Counters, FORMAT_ROW, TABLE};
use super::log::{self, Half, Log};
use super::mover::{self, Pace};
use crate::store::encoding::{STORE_FORMAT, check_format};

/// The data file in its directory.
pub(super) const FILE: &str = "onced.redb";
/// What stands for the directory where there is none.
pub(super) const BACKEND: &str = "memory";
/// How much of the file is kept in memory.
const CACHE_BYTES: usize = 256 << 20;

/// Opens what has to be whole. redb checks little of a file that was closed properly, and panics where it then finds
/// what it never writes.
pub(super) fn whole<T>(
    directory: &Path,
    open: impl FnOnce() -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    catch_unwind(AssertUnwindSafe(open))
        .unwrap_or_else(|_| Err(damaged(directory, "reading it ended in a panic; see the log")))
}

/// Opens the data file in a directory.
pub(super) fn in_directory(directory: &Path) -> Result<(Database, [Half; 2]), OpenError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| OpenError::Io(path, error)
    };
    make_directory(directory, sync)?;
    let path = directory.join(FILE);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let open = |path: &Path| options.open(path).map_err(failed(path));
    let file = open(&path)?;
    let mut halves = Vec::new();
    for name in log::FILES {
        let path = directory.join(name);
        let half = FileBackend::new(open(&path)?).map_err(|error| refused(directory, &path, error))?;
        halves.push(Box::new(half) as Half);
    }
    let halves = halves.try_into().map_err(|_| damaged(directory, "its log is missing"))?;
    let database = builder().create_file(file).map_err(|error| refused(directory, &path, error))?;
    // What is new survives a power cut only once the directory that names it is synced.
    sync(directory).map_err(failed(directory))?;
    Ok((database, halves))
}

/// Opens a store on another kind of storage.
pub(super) fn on_backend(backend: impl StorageBackend) -> Result<Database, OpenError> {
    let path = Path::new(BACKEND);
    builder().create_with_backend(backend).map_err(|error| refused(path, path, error))
}

/// The counters of a store. A new store gets its first ones; one of a newer format is refused.
pub(super) fn counters(database: &Database, directory: &Path) -> Result<Counters, OpenError> {
    let path = directory.join(FILE);
    let damaged = |what: &str| damaged(directory, what);
    let unreadable = |error: redb::Error| refused(directory, &path, error);
    let snapshot = database.begin_read().map_err(|error| unreadable(error.into()))?;
    let table = match snapshot.open_table(TABLE) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => {
            return create(database).map_err(unreadable);
        }
        Err(error) => return Err(unreadable(error.into())),
    };
    let format = table.get(FORMAT_ROW).map_err(|error| unreadable(error.into()))?;
    let format = format
        .and_then(|value| Some(u32::from_be_bytes(value.value().try_into().ok()?)))
        .ok_or_else(|| damaged("its format is not written in it"))?;
    check_format(format).map_err(|why| OpenError::Format(directory.to_owned(), why))?;
    let counters = table.get(COUNTERS_ROW).map_err(|error| unreadable(error.into()))?;
    counters
        .and_then(|value| Counters::parse(value.value()))
        .ok_or_else(|| damaged("its counters are missing or broken"))
}

/// Moves to the tree what the log holds beyond it.
pub(super) fn log(
    database: &Database,
    halves: [Half; 2],
    counters: Counters,
    directory: &Path,
) -> Result<(Log, Counters), OpenError> {
    let (log, found) = Log::open(halves, counters, directory)?;
    if found.counters != counters {
        mover::write(database, found.counters, &found.rows, &Pace::Alone)
            .map_err(|error| refused(directory, &directory.join(FILE), error))?;
    }
    Ok((log, found.counters))
}

fn damaged(directory: &Path, what: &str) -> OpenError {
    OpenError::Damaged(directory.to_owned(), what.to_owned())
}

fn create(database: &Database) -> Result<Counters, redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(TABLE)?;
        table.insert(FORMAT_ROW, STORE_FORMAT.to_be_bytes().as_slice())?;
        table.insert(COUNTERS_ROW, Counters::NEW.to_value().as_slice())?;
    }
    transaction.commit()?;
    Ok(Counters::NEW)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder.set_repair_callback(|repair| {
        let done_percent = repair.progress() * 100.0;
        tracing::warn!(done_percent, "the store was not closed properly: checking its file");
    });
    builder
}

/// Why a file cannot be opened, by an error of redb.
fn refused(directory: &Path, path: &Path, error: impl Into<redb::Error>) -> OpenError {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => OpenError::InUse(directory.to_owned()),
        // What is no store, or was cut short, is called so, too.
        redb::Error::Io(error) if !matches!(error.kind(), InvalidData | UnexpectedEof) => {
            OpenError::Io(path.to_owned(), error)
        }
        error => OpenError::Damaged(path.to_owned(), error.to_string()),
    }
}

/// Makes a directory that only its owner may look into, as records hold what callers stored, and those above it
/// that are missing. `sync` is to make durable what a directory names.
pub(super) fn make_directory(
    directory: &Path,
    sync: impl Fn(&Path) -> io::Result<()>,
) -> Result<(), OpenError> {
    use io::ErrorKind::{InvalidInput, NotADirectory, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    if directory.exists() && !directory.is_dir() {
        let error = io::Error::new(NotADirectory, "it is no directory");
        return Err(OpenError::Io(directory.to_owned(), error));
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(|error| OpenError::Io(directory.to_owned(), error))?;
    if directory.join(FILE).exists() {
        return Ok(());
    }
    // Not only those made just now: an earlier start may have made others, and been killed before this.
    for above in directory.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        match sync(above) {
            Ok(()) => {}
            // Nothing can be made in it, or not by us, so it was there before, and so was what lies above it.
            Err(error)
                if matches!(
                    error.kind(),
                    PermissionDenied | ReadOnlyFilesystem | InvalidInput | Unsupported
                ) =>
            {
                break;
            }
            Err(error) => return Err(OpenError::Io(above.to_owned(), error)),
        }
    }
    Ok(())
}

fn sync(directory: &Path) -> io::Result<()> {
    // Elsewhere than on unix a directory cannot be opened as a file, and need not be.
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}
