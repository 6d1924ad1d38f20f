//! `strobe backup`, as the control socket hears it.

use super::super::Broker;
use super::super::clock::wall_ms;
use crate::api::Form;
use crate::backup::{self, BackupError, Seat};
use crate::cluster::{Answer, Asked};
use crate::own;
use crate::writer::Order;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use strobe_wire::message::{ApiRequest, ApiResponse};

impl Broker {
    /// Makes a backup in the folder `to` of the request, one at a time.
    pub(super) fn back_up(&self, request: &ApiRequest) -> Result<ApiResponse, ApiResponse> {
        let bad = |why: &str| own::error(400, "bad_data", why);
        let form = Form::of(request).map_err(|why| bad(&why))?;
        let to = form.optional("to").map(Path::new).filter(|to| to.is_absolute());
        let to = to.ok_or_else(|| bad("to=ABSOLUTE PATH is wanted"))?;
        let busy = &self.shared.backing_up;
        // Acquire and Release: the folder of the last one is gone when this one begins.
        if busy.swap(true, Ordering::Acquire) {
            return Err(own::error(503, "unavailable", "a backup is being made already"));
        }
        let made = self.make_backup(to);
        busy.store(false, Ordering::Release);
        let said = made.map_err(|why| own::error(422, "execution", &why))?;
        Ok(own::text(200, &said))
    }

    fn make_backup(&self, to: &Path) -> Result<String, String> {
        let text = |why: BackupError| why.to_string();
        let dir = &self.shared.config.dir;
        let staging = dir.join(STAGING);
        // Of a life that ended in the middle of one.
        drop(std::fs::remove_dir_all(&staging));
        backup::make_empty(to).map_err(text)?;
        backup::make(&staging).map_err(text)?;
        let seat = self.seat()?;
        let (reply, answer) = sync_channel(1);
        let sent = self.shared.orders.try_send(Order::Link(staging.clone(), reply));
        sent.map_err(|_| "the store is behind; try again later".to_owned())?;
        let linked = answer.recv_timeout(LINK_WAIT);
        linked.map_err(|_| "the store does not answer; try again later".to_owned())??;
        let made_ms = wall_ms();
        backup::gather(dir, &staging, to).map_err(text)?;
        let seat = match seat {
            Some((seat, image)) => {
                backup::keep_image(to, &image).map_err(text)?;
                Some(seat)
            }
            None => None,
        };
        let manifest = backup::seal(to, made_ms, seat).map_err(text)?;
        let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
        log::info!("a backup was made in {}", to.display());
        Ok(format!(
            "{} files of {bytes} bytes are in {}: whatever was acknowledged before {}. The fleet's private key \
             is among them: keep it as safe as this machine. `strobe backup check` reads all of it.",
            manifest.files.len(),
            to.display(),
            crate::api::moment(made_ms),
        ))
    }

    /// This broker's place in a cluster, and what that agreed on.
    fn seat(&self) -> Result<Option<(Seat, Vec<u8>)>, String> {
        if !self.shared.is_clustered() {
            return Ok(None);
        }
        let stuck = || "the control plane does not answer; try again later".to_owned();
        let Answer::Report(report) = self.shared.cluster.ask(Asked::Report)? else {
            return Err(stuck());
        };
        let Answer::Image(image) = self.shared.cluster.ask(Asked::Image)? else {
            return Err(stuck());
        };
        let me = report.members.iter().find(|member| member.id == report.me);
        let address = me.map(|member| member.address.clone()).ok_or("this broker is no member")?;
        let cluster = format!("{:032x}", report.cluster);
        Ok(Some((Seat { cluster, broker: report.me, address }, image)))
    }
}

/// On the state directory's disk, for second names.
const STAGING: &str = "backup.part";
const LINK_WAIT: Duration = Duration::from_secs(60);
