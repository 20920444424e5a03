//! CronJobs: a Job at each time of a schedule. The plan is pure; a Job's name comes from its time, so that none starts
//! twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::time::rfc3339;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job};
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::owners::{self, BY_CONTROLLER};
use crate::plan::{Action, Note, Plan};
use crate::pods::seconds_between;
use crate::runner::{Controller, own_key};
use crate::schedule::{MAX_MISSED, Schedule};
use crate::{Context, conditions, decoded, status_of};

/// What is told to those who write a time zone into the schedule itself.
const TIME_ZONES: &str = "https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/";
pub const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// The clock may be set while we wait, which no timer notices: so long at most until we do.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Keys reconciled at once: many are due in the same second, and nobody should have to wait for the pods of the first.
const WORKERS: usize = 32;
/// Bytes of a CronJob's name in its Jobs' names.
const MAX_PREFIX: usize = 52;

/// How a Job ended, if it did: `Complete` or `Failed`.
fn ended(status: &Value) -> Option<&'static str> {
    ["Complete", "Failed"].into_iter().find(|c| conditions::is_true(status, c))
}

fn job_name(object: &Object, at: Timestamp) -> String {
    let name = &object.meta.name;
    format!("{}-{}", &name[..name.len().min(MAX_PREFIX)], at.as_second() / 60)
}

/// Whether a Job has the name of one of the schedule's times.
fn is_scheduled(object: &Object, job: &str) -> bool {
    let minute = job.rsplit_once('-').and_then(|(_, minute)| minute.parse::<i64>().ok());
    let at = minute.and_then(|m| Timestamp::from_second(m.checked_mul(60)?).ok());
    at.is_some_and(|at| job_name(object, at) == job)
}

/// `is_changed`: the schedule is another than when the CronJob was last looked at.
pub fn plan(
    object: &Object,
    spec: &CronJobSpec,
    jobs: &[Arc<Object>],
    is_changed: bool,
    now: Timestamp,
) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let known = status_of(object)?;
    let mut status = if known.is_object() { known.clone() } else { json!({}) };
    let mut active: Vec<Value> = status["active"].as_array().cloned().unwrap_or_default();
    let statuses = jobs.iter().map(|j| Ok((j, status_of(j)?))).collect::<Result<Vec<_>, Status>>()?;
    for (job, state) in &statuses {
        let listed = active.iter().any(|a| a["uid"] == *job.meta.uid);
        let Some(how) = ended(state) else {
            if !listed {
                active.push(json!(client::reference(job)));
            }
            if !listed && !is_scheduled(object, &job.meta.name) {
                let said = format!("Saw a job that the controller did not create or forgot: {}", job.meta.name);
                plan.note(Note::warning(object, "UnexpectedJob", said));
            }
            continue;
        };
        if listed {
            active.retain(|a| a["uid"] != *job.meta.uid);
            let said = format!("Saw completed job: {}, condition: {how}", job.meta.name);
            plan.note(Note::normal(object, "SawCompletedJob", said));
        }
        let finished = client::time::parse(state["completionTime"].as_str().unwrap_or_default());
        let last = client::time::parse(status["lastSuccessfulTime"].as_str().unwrap_or_default());
        if let Some(finished) = finished.filter(|f| last.is_none_or(|l| *f > l)) {
            status["lastSuccessfulTime"] = rfc3339(finished).into();
        }
    }
    active.retain(|a| {
        let there = jobs.iter().any(|j| a["uid"] == *j.meta.uid);
        if !there {
            let said = format!("Active job went missing: {}", a["name"].as_str().unwrap_or_default());
            plan.note(Note::normal(object, "MissingJob", said));
        }
        there
    });
    forget_old(&mut plan, object, spec, &statuses);
    if object.meta.deletion_timestamp.is_none() {
        schedule(&mut plan, object, spec, jobs, (&mut status, &mut active), is_changed, now)?;
    }
    if active.is_empty() {
        if let Some(map) = status.as_object_mut() {
            map.remove("active");
        }
    } else {
        status["active"] = active.into();
    }
    // A fresh status is {} either way.
    if status != known && !(known.is_null() && status == json!({})) {
        plan.act(Action::status(&client::gvr_of::<CronJob>(), object, status)?);
    }
    Ok(plan)
}

/// Deletes the oldest ended Jobs beyond the history limits.
fn forget_old(plan: &mut Plan, object: &Object, spec: &CronJobSpec, jobs: &[(&Arc<Object>, Value)]) {
    let limits = [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
    ];
    for (how, limit) in limits {
        let mut of: Vec<_> =
            jobs.iter().filter(|(j, s)| ended(s) == Some(how) && j.meta.deletion_timestamp.is_none()).collect();
        of.sort_by_key(|(j, s)| (s["startTime"].as_str().unwrap_or_default().to_string(), j.meta.name.clone()));
        let beyond = of.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        plan.actions.extend(of.into_iter().take(beyond).map(|(job, _)| delete(object, job)));
    }
}

fn delete(object: &Object, job: &Object) -> Action {
    let options = client::DeleteOptions::default().propagation(client::Propagation::Background);
    Action::delete_with(&client::gvr_of::<Job>(), job, options)
        .done(Note::normal(object, "SuccessfulDelete", format!("Deleted job {}", job.meta.name)))
        .failed(Note::warning(object, "FailedDelete", "Deleted job: {}"))
}

fn schedule(
    plan: &mut Plan,
    object: &Object,
    spec: &CronJobSpec,
    jobs: &[Arc<Object>],
    (status, active): (&mut Value, &mut Vec<Value>),
    is_changed: bool,
    now: Timestamp,
) -> Result<(), Status> {
    let zone = match spec.time_zone.as_deref() {
        None => TimeZone::UTC,
        Some(name) => match TimeZone::get(name) {
            Ok(zone) => zone,
            Err(error) => {
                plan.note(Note::warning(object, "UnknownTimeZone", format!("invalid timeZone: {name:?}: {error}")));
                return Ok(());
            }
        },
    };
    if spec.suspend == Some(true) {
        return Ok(());
    }
    if spec.schedule.contains("TZ") {
        let said = format!(
            "CRON_TZ or TZ used in schedule {:?} is not officially supported, see {TIME_ZONES} for more details",
            spec.schedule
        );
        plan.note(Note::warning(object, "UnsupportedSchedule", said));
    }
    let schedule = match Schedule::parse(&spec.schedule, zone) {
        Ok(schedule) => schedule,
        Err(error) if is_changed => {
            let said = format!("unparseable schedule for cronjob: {}", spec.schedule);
            plan.note(Note::warning(object, "UnParseableCronJobSchedule", said));
            tracing::debug!(cronjob = object.meta.key(), "{error}");
            return Ok(());
        }
        Err(error) => {
            let said = format!("unparseable schedule: {:?} : {error}", spec.schedule);
            plan.note(Note::warning(object, "UnparseableSchedule", said));
            return Ok(());
        }
    };
    if let Some(next) = schedule.next(now) {
        let wait = u64::try_from(next.as_millisecond() - now.as_millisecond()).unwrap_or(0);
        plan.again_after(Duration::from_millis(wait + 1).min(LONGEST_WAIT));
    }
    let last = client::time::parse(status["lastScheduleTime"].as_str().unwrap_or_default());
    let created = client::time::parse(&object.meta.creation_timestamp).unwrap_or(now);
    let mut earliest = last.unwrap_or(created);
    if let Some(deadline) = spec.starting_deadline_seconds
        && let Ok(bound) = Timestamp::from_second(now.as_second().saturating_sub(deadline))
    {
        earliest = earliest.max(bound);
    }
    if earliest <= now && schedule.next(earliest).is_none() {
        // Such as the 31st of February: to upstream, two times of none lie too close together.
        let said = "time difference between two schedules is less than 1 second";
        plan.note(Note::warning(object, "InvalidSchedule", format!("invalid schedule: {} : {said}", spec.schedule)));
        return Ok(());
    }
    let Some(at) = schedule.latest(earliest, now) else { return Ok(()) };
    if schedule.count(earliest, now) > MAX_MISSED {
        let said = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.note(Note::warning(object, "TooManyMissedTimes", said));
    }
    if spec.starting_deadline_seconds.is_some_and(|d| seconds_between(at, now) > d) {
        let said = format!("Missed scheduled time to start a job: {}", at.strftime("%a, %d %b %Y %H:%M:%S UTC"));
        plan.note(Note::warning(object, "MissSchedule", said));
        return Ok(());
    }
    let name = job_name(object, at);
    if last == Some(at) || jobs.iter().any(|j| *j.meta.name == *name) {
        if last != Some(at) {
            status["lastScheduleTime"] = rfc3339(at).into();
        }
        return Ok(());
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let said = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.note(Note::normal(object, "JobAlreadyActive", said));
            return Ok(());
        }
        Some("Replace") => {
            let running = jobs.iter().filter(|j| active.iter().any(|a| a["uid"] == *j.meta.uid));
            plan.actions.extend(running.map(|j| delete(object, j)));
            active.clear();
        }
        _ => {}
    }
    let template = serde_json::to_value(&spec.job_template).map_err(Status::internal)?;
    let mut metadata = json!({"name": name, "namespace": &*object.meta.namespace, "ownerReferences": [owners::controller_ref(object)]});
    for field in ["labels", "annotations"] {
        if let Some(value) = template["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let local = schedule.zoned(at).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    metadata["annotations"][SCHEDULED_AT] = local.replace("+00:00", "Z").into();
    let body = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]});
    let create = Action::create(&client::gvr_of::<Job>(), &object.meta.namespace, body)
        .may_exist()
        .done(Note::normal(object, "SuccessfulCreate", "Created job {}"))
        .failed(Note::warning(object, "FailedCreate", "Error creating job: {}"));
    // The time is noted when the Job is seen; until then its name keeps it from being made twice.
    plan.act(create);
    Ok(())
}

pub fn cron_jobs(cx: &Context) -> Controller {
    let (crons, jobs) = (cx.informers.get::<CronJob>(), cx.informers.get::<Job>());
    owners::index(&jobs);
    let (of, of_jobs) = (crons.clone(), jobs.clone());
    // Schedules as they were last looked at.
    let schedules: Mutex<HashMap<Arc<str>, String>> = Mutex::default();
    Controller::new("cronjob-controller", move |ask| {
        let mut schedules = schedules.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = of.get(&ask.key) else {
            schedules.remove(&ask.key);
            return Ok(Plan::nothing());
        };
        let cron = decoded::<CronJob>(&object)?;
        let before = schedules.insert(ask.key, cron.spec.schedule.clone());
        drop(schedules);
        let is_changed = before.is_some_and(|b| b != cron.spec.schedule);
        plan(&object, &cron.spec, &of_jobs.by_index(BY_CONTROLLER, &object.meta.uid), is_changed, ask.now)
    })
    .watch(&crons, own_key)
    .watch(&jobs, owners::to_controller("CronJob"))
    .workers(WORKERS)
}
