//! Which process holds a lease, told so that another one on the same machine can say for certain that it is gone.
//!
//! A process is gone if the machine has not been started since, the numbers are of the same namespace, and no process has
//! that number, or a younger one has. From any other machine or container nothing can be said.
//!
//! Source: proc(5) on `/proc/<pid>/stat`, pid_namespaces(7), `/proc/sys/kernel/random/boot_id` in random(4).

use std::fs;

use serde::{Deserialize, Serialize};

/// A process of some machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Which start of the machine.
    pub boot: String,
    /// The namespace that the number belongs to.
    pub namespace: String,
    /// Its number there.
    pub pid: u32,
    /// When it was started, in clock ticks since the machine was.
    pub started: u64,
}

impl Process {
    /// Returns this process; `None` where the kernel does not tell.
    pub fn own() -> Option<Self> {
        let pid = std::process::id();
        Some(Self { boot: boot()?, namespace: namespace()?, pid, started: started(pid)? })
    }

    /// Returns whether it certainly no longer runs.
    pub fn is_gone(&self) -> bool {
        let here = boot().as_ref() == Some(&self.boot) && namespace().as_ref() == Some(&self.namespace);
        // Numbers are used again, moments are not.
        here && match fs::metadata(format!("/proc/{}", self.pid)) {
            // Where /proc hides the processes of others, the kernel still tells that there is one.
            Err(error) => {
                error.kind() == std::io::ErrorKind::NotFound
                    && fs::metadata("/proc/self").is_ok()
                    && rustix::process::Pid::from_raw(self.pid.cast_signed())
                        .is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
            }
            Ok(_) => is_over(self.pid) || started(self.pid).is_some_and(|started| started != self.started),
        }
    }
}

fn boot() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

fn namespace() -> Option<String> {
    Some(fs::read_link("/proc/self/ns/pid").ok()?.to_string_lossy().into_owned())
}

/// Returns whether a process has ended and only waits for its parent to hear of it.
fn is_over(pid: u32) -> bool {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    line.rsplit_once(')').is_some_and(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('Z' | 'X')))
}

/// Field 22 of the process's line; the second one is in brackets and may hold anything.
fn started(pid: u32) -> Option<u64> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    line.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_process_is_gone_only_if_it_certainly_is() {
        let own = Process::own().unwrap();
        assert!(!own.is_gone());
        assert!(Process { started: own.started + 1, ..own.clone() }.is_gone(), "a younger process has its number");
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert!(Process { pid, ..own.clone() }.is_gone());
        assert!(!Process { pid, boot: "another".to_owned(), ..own.clone() }.is_gone(), "another machine");
        assert!(!Process { pid, namespace: "another".to_owned(), ..own }.is_gone(), "another container");
    }
}
