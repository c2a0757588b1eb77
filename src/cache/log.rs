//! Segments: the append-only files in which the bytes of stored responses lie.
//!
//! What is written is never changed; what is not live any more goes with its segment, once the rest of it has been
//! copied to the end of the log. Nothing here knows what the bytes are: whoever reads them checks them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Where bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub segment: u32,
    pub offset: u64,
    pub len: u32,
    /// CRC-32 of them.
    pub sum: u32,
}

impl Place {
    /// Whether these are the bytes that were written.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.len as usize && crc32fast::hash(bytes) == self.sum
    }

    /// Whether `next` begins where this ends: one read takes both.
    pub fn is_followed_by(&self, next: &Place) -> bool {
        self.segment == next.segment && self.offset + u64::from(self.len) == next.offset
    }
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Yes,
    /// Only what the system has in memory; else `WouldBlock`. (preadv2(2), `RWF_NOWAIT`.)
    No,
}

/// Reads `len` bytes.
///
/// # Errors
/// The file ends before, or the disk failed; `WouldBlock` where it may not wait and would have to.
pub(super) fn read(file: &File, offset: u64, len: usize, wait: Wait) -> io::Result<Bytes> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        let (rest, at) = (&mut bytes[done..], offset + done as u64);
        let n = match wait {
            Wait::Yes => file.read_at(rest, at)?,
            Wait::No => read_at_once(file, rest, at)?,
        };
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        done += n;
    }
    Ok(bytes.into())
}

#[cfg(target_os = "linux")]
fn read_at_once(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    match preadv2(file, &mut [io::IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT) {
        // Not every file system can tell.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::WouldBlock.into()),
        result => Ok(result?),
    }
}

#[cfg(not(target_os = "linux"))]
fn read_at_once(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
    Err(io::ErrorKind::WouldBlock.into())
}

/// The end of the log, where writes go.
pub(super) struct End {
    dir: PathBuf,
    pub segment: u32,
    pub file: Arc<File>,
    pub len: u64,
}

impl End {
    /// Begins a new segment in `dir`; its number was never used before.
    pub fn begin(dir: &Path, segment: u32) -> io::Result<End> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path(dir, segment))?;
        Ok(End { dir: dir.to_owned(), segment, file: Arc::new(file), len: 0 })
    }

    /// Goes on in the next segment.
    pub fn roll(&mut self) -> io::Result<()> {
        *self = End::begin(&self.dir, self.segment + 1)?;
        Ok(())
    }

    /// Writes pieces, one after the other in one go, and says where each lies.
    pub fn append(&mut self, pieces: &[&[u8]]) -> io::Result<Vec<Place>> {
        let joined;
        let all: &[u8] = match pieces {
            [one] => one,
            many => {
                joined = many.concat();
                &joined
            }
        };
        // What a failed write left behind is written over by the next.
        self.file.write_all_at(all, self.len)?;
        let mut places = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let len = u32::try_from(piece.len()).map_err(io::Error::other)?;
            places.push(Place { segment: self.segment, offset: self.len, len, sum: crc32fast::hash(piece) });
            self.len += u64::from(len);
        }
        Ok(places)
    }
}

/// The segments in a directory, by number, with their lengths in bytes.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<(u32, Arc<File>, u64)>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let file = file?;
        let Some(number) = file.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let opened = File::open(file.path())?;
        let len = opened.metadata()?.len();
        found.push((number, Arc::new(opened), len));
    }
    Ok(found)
}

/// Removes a segment. Who reads from it still can.
pub(super) fn remove(dir: &Path, segment: u32) -> io::Result<()> {
    std::fs::remove_file(path(dir, segment))
}

fn path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{segment:010}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut end = End::begin(dir.path(), 7).unwrap();
        let places = end.append(&[b"body", b"record"]).unwrap();
        assert!(places[0].is_followed_by(&places[1]) && !places[1].is_followed_by(&places[0]));
        end.roll().unwrap();
        let later = end.append(&[b"next"]).unwrap();
        assert_eq!((later[0].segment, later[0].offset), (8, 0));
        let all = segments(dir.path()).unwrap();
        let (_, first, len) = all.iter().find(|s| s.0 == 7).unwrap();
        assert_eq!(*len, 10);
        for wait in [Wait::Yes, Wait::No] {
            match read(first, 0, 10, wait) {
                Ok(bytes) => assert_eq!(bytes, &b"bodyrecord"[..]),
                Err(error) => assert_eq!((wait, error.kind()), (Wait::No, io::ErrorKind::WouldBlock)),
            }
        }
        assert_eq!(read(first, 5, 10, Wait::Yes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(End::begin(dir.path(), 8).is_err(), "no number twice");
    }
}
