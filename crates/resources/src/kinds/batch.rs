//! batch: jobs and cron jobs.

use meta::Value;

use crate::cells::{age, containers, human_duration, name, seconds_between, selector, since, titled};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    Job: "Name|Status|Completions|Duration|Age|Containers*|Images*|Selector*";
    CronJob: "Name|Schedule|Timezone|Suspend|Active#|Last Schedule|Age|Containers*|Images*|Selector*";
}

/// The condition that says most about a job.
fn job_status(job: &Value) -> &'static str {
    let holds = |kind: &str| job.find("status.conditions", "type", kind).is_some_and(|c| c.text("status") == "True");
    match () {
        _ if holds("Complete") => "Complete",
        _ if holds("Failed") => "Failed",
        _ if job.has("metadata.deletionTimestamp") => "Terminating",
        _ if holds("Suspended") => "Suspended",
        _ if holds("FailureTarget") => "FailureTarget",
        _ if holds("SuccessCriteriaMet") => "SuccessCriteriaMet",
        _ => "Running",
    }
}

impl Strategy for Job {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let succeeded = object.int("status.succeeded");
        let completions = match (object.number("spec.completions"), object.int("spec.parallelism")) {
            (Some(wanted), _) => format!("{succeeded}/{wanted}"),
            (None, parallel @ 2..) => format!("{succeeded}/1 of {parallel}"),
            (None, _) => format!("{succeeded}/1"),
        };
        let end = Some(object.text("status.completionTime")).filter(|t| !t.is_empty()).unwrap_or(now);
        let duration = seconds_between(object.text("status.startTime"), end).map(human_duration).unwrap_or_default();
        let [names, images] = containers(object.list("spec.template.spec.containers"));
        vec![
            name(object),
            job_status(object).into(),
            completions.into(),
            duration.into(),
            age(object, now),
            names,
            images,
            selector(object.at("spec.selector")),
        ]
    }
}

impl Strategy for CronJob {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let last = object.text("status.lastScheduleTime");
        let job = object.at("spec.jobTemplate.spec");
        let [names, images] = containers(job.list("template.spec.containers"));
        vec![
            name(object),
            object.text("spec.schedule").into(),
            object.at("spec.timeZone").as_str().unwrap_or("<none>").into(),
            titled(object.at("spec.suspend")),
            object.list("status.active").len().into(),
            if last.is_empty() { "<none>".into() } else { since(last, now).into() },
            age(object, now),
            names,
            images,
            selector(job.at("selector")),
        ]
    }
}
