//! What would be changed so that a region of some size lies on huge pages, and changing it.
//!
//! ```text
//! sysctl   /etc/sysctl.d/60-strobe-hugepages.conf           the pool, after each boot
//! systemd  /etc/systemd/system/strobe-agent.service.d/60-hugepages.conf   starts behind it
//! kernel   /proc/sys/vm/nr_hugepages                        the pool, now
//! ```
//!
//! A plan is made of what the host says and changes nothing; [`apply`] makes its steps in order and says of
//! each what was there before. The pool only grows: pages that others asked for stay.

use crate::host::Pool;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Steps to make, in order; none if all is as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// What there is to do.
    pub steps: Vec<Step>,
    /// Why there is nothing, or less, to do.
    pub notes: Vec<String>,
}

/// One file and what it shall hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Under the root given to [`apply`], which is `/` but in tests.
    pub path: PathBuf,
    /// What it shall hold.
    pub content: String,
    /// Whether it is the kernel's, which may give less than it is asked for.
    pub kernels: bool,
}

/// A step that was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// The file.
    pub path: PathBuf,
    /// What it held before; nothing if it was not there.
    pub before: Option<String>,
    /// What it holds now.
    pub after: String,
    /// Whether that is what was asked for.
    pub whole: bool,
}

/// For a region of `bytes` on pages of the default pool.
#[must_use]
pub fn plan(bytes: usize, pools: &[Pool], default_page_bytes: Option<usize>) -> Plan {
    let mut plan = Plan::default();
    let default =
        default_page_bytes.and_then(|bytes| pools.iter().find(|pool| pool.page_bytes == bytes));
    let Some(pool) = default else {
        plan.notes.push("this kernel has no hugetlb pages: there is nothing to plan".to_owned());
        return plan;
    };
    let wanted = bytes.div_ceil(pool.page_bytes);
    let usable = pool.free.saturating_sub(pool.reserved);
    let total = pool.total + wanted.saturating_sub(usable);
    plan.notes.push(format!(
        "{bytes} bytes are {wanted} pages of {}; of {} in the pool {usable} are for anybody",
        pool.page_bytes, pool.total
    ));
    let file = |path: &str, content: String| Step { path: path.into(), content, kernels: false };
    plan.steps.push(file(
        SYSCTL,
        format!("# Written by strobe-hugepages apply.\nvm.nr_hugepages = {total}\n"),
    ));
    plan.steps.push(file(
        UNIT,
        "# Written by strobe-hugepages apply: the pool is there before the agent maps its ring.\n\
         [Unit]\nAfter=systemd-sysctl.service\n"
            .to_owned(),
    ));
    if pool.total < total {
        let path = PathBuf::from(POOL);
        plan.steps.push(Step { path, content: format!("{total}\n"), kernels: true });
    }
    plan
}

impl Plan {
    /// Leaves out what is so already under `root`.
    #[must_use]
    pub fn without_what_is_so(mut self, root: &Path) -> Self {
        self.steps.retain(|step| {
            fs::read_to_string(under(root, &step.path)).ok().as_ref() != Some(&step.content)
        });
        self
    }

    /// For people: each file with what it would hold.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for note in &self.notes {
            let _ = writeln!(out, "{note}");
        }
        if self.steps.is_empty() {
            out.push_str("nothing would be changed\n");
        }
        for step in &self.steps {
            let _ = writeln!(out, "\nwould write {}:", step.path.display());
            for line in step.content.lines() {
                let _ = writeln!(out, "    {line}");
            }
        }
        out
    }
}

/// Makes the steps, one after the other, and ends at the first that fails.
///
/// # Errors
/// The path and the system's words, behind what was made before it.
pub fn apply(plan: &Plan, root: &Path) -> (Vec<Made>, Result<(), (PathBuf, io::Error)>) {
    let mut made = Vec::new();
    for step in &plan.steps {
        let path = under(root, &step.path);
        match make(&path, step) {
            Ok(one) => made.push(one),
            Err(why) => return (made, Err((path, why))),
        }
    }
    (made, Ok(()))
}

fn make(path: &Path, step: &Step) -> io::Result<Made> {
    let before = fs::read_to_string(path).ok();
    if let Some(folder) = path.parent().filter(|_| !step.kernels) {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, &step.content)?;
    let after = fs::read_to_string(path)?;
    let whole = after.trim() == step.content.trim();
    Ok(Made { path: path.to_owned(), before, after, whole })
}

fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

const SYSCTL: &str = "/etc/sysctl.d/60-strobe-hugepages.conf";
const UNIT: &str = "/etc/systemd/system/strobe-agent.service.d/60-hugepages.conf";
const POOL: &str = "/proc/sys/vm/nr_hugepages";

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(total: usize, free: usize, reserved: usize) -> Pool {
        Pool { page_bytes: 2 << 20, total, free, reserved }
    }

    fn total(plan: &Plan) -> Option<&str> {
        plan.steps.iter().find(|step| step.kernels).map(|step| step.content.trim())
    }

    #[test]
    fn the_pool_grows_by_what_is_missing_and_never_shrinks() {
        let of = |bytes, pool| plan(bytes, &[pool], Some(2 << 20));
        assert_eq!(total(&of(32 << 20, pool(0, 0, 0))), Some("16"));
        assert_eq!(total(&of(1, pool(10, 0, 0))), Some("11"), "others' pages stay");
        assert_eq!(total(&of(4 << 20, pool(10, 5, 4))), Some("11"), "promised ones are not free");
        assert_eq!(total(&of(4 << 20, pool(10, 5, 0))), None);
        let none = plan(1, &[], None);
        assert!(none.steps.is_empty() && none.text().contains("nothing would be changed"));
    }

    #[test]
    fn a_plan_changes_nothing_and_applying_it_twice_changes_nothing_the_second_time() {
        let root = std::env::temp_dir().join(format!("strobe-hugepages-{}", std::process::id()));
        fs::create_dir_all(root.join("proc/sys/vm")).unwrap();
        fs::write(root.join("proc/sys/vm/nr_hugepages"), "3\n").unwrap();
        let plan = plan(8 << 20, &[pool(3, 0, 0)], Some(2 << 20)).without_what_is_so(&root);
        let text = plan.text();
        assert!(text.contains("would write /etc/sysctl.d/60-strobe") && text.contains("= 7\n"));
        assert!(!root.join("etc").exists());
        let (made, ended) = apply(&plan, &root);
        assert!(ended.is_ok());
        let told: Vec<_> = made.iter().map(|made| (made.before.as_deref(), made.whole)).collect();
        assert_eq!(told, [(None, true), (None, true), (Some("3\n"), true)]);
        assert_eq!(plan.clone().without_what_is_so(&root).steps, []);
        // A folder that cannot be made is named, and nothing behind it is tried.
        fs::remove_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc"), "").unwrap();
        let (made, ended) = apply(&plan, &root);
        assert!(made.is_empty() && ended.unwrap_err().0.ends_with("60-strobe-hugepages.conf"));
        fs::remove_dir_all(&root).unwrap();
    }
}
