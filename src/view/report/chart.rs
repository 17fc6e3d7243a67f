//! The drawing: timelines under each other on one axis of time.
//!
//! Across, everything is in parts of a hundred of the width, so that the same drawing fits a desk and a phone without its
//! letters shrinking; down, in pixels. Every mark has a title, and takes the focus.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use super::LaneReport;
use super::html::escaped;
use crate::catalog::TimelineCatalog;
use crate::pg::timeline::TimelineId;
use crate::restore::{Chronicle, Event, Happening, Reach, ReachEnd, Removal};
use crate::view::{events, human, timelines};

/// Above the first row, for the axis.
const TOP: usize = 30;
const ROW: usize = 66;
/// From a row's top to the middle of its track, and half the height of a shaded stretch.
const MIDDLE: usize = 40;
const HALF: usize = 11;
/// Marks of events that are drawn of one timeline, the newest.
const MARKS: usize = 400;
/// Positions that the page knows the time of, of one timeline.
const CLOCK: usize = 400;

type Time = DateTime<Utc>;

/// The axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    from: Time,
    until: Time,
}

impl Axis {
    /// Spans all moments that are drawn, and a little more.
    fn of(lane: &LaneReport) -> Option<Self> {
        let backups = lane.catalogue.backups.iter();
        let backups = backups.flat_map(|manifest| [manifest.envelope.started_at, manifest.envelope.stopped_at]);
        let clocks = lane.chronicles.iter().flat_map(|told| [told.clock.first(), told.clock.last()]);
        let clocks = clocks.flatten().map(|(_, time)| time.to_utc());
        let events = lane.chronicles.iter().flat_map(|told| &told.events);
        let events = events.filter_map(|event| event.time).map(|time| time.to_utc());
        let all: Vec<Time> =
            backups.chain(clocks).chain(events).chain(lane.span().into_iter().flat_map(|(a, b)| [a, b])).collect();
        let (first, last) = (*all.iter().min()?, *all.iter().max()?);
        let pad = ((last - first) / 40).max(TimeDelta::seconds(2));
        Some(Self { from: first - pad, until: last + pad })
    }

    /// Parts of a hundred from the left.
    fn x(&self, time: Time) -> f64 {
        let part = (time - self.from).num_milliseconds() as f64 / (self.until - self.from).num_milliseconds() as f64;
        (part * 100.0).clamp(0.0, 100.0)
    }

    /// Moments to name: round ones, at most so many.
    fn ticks(&self, most: i64) -> Vec<(Time, String)> {
        const STEPS: [i64; 24] = [
            1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800,
            604_800, 1_209_600, 2_592_000, 7_776_000, 31_536_000,
        ];
        let span = (self.until - self.from).num_seconds().max(1);
        let step = STEPS.into_iter().find(|step| span / step < most).unwrap_or(span / most + 1);
        let format = match step {
            ..60 => "%H:%M:%S",
            60..86_400 if span < 86_400 => "%H:%M",
            60..86_400 => "%d %b %H:%M",
            86_400..2_592_000 => "%d %b",
            _ => "%b %Y",
        };
        let first = self.from.timestamp().div_euclid(step) + 1;
        let last = self.until.timestamp().div_euclid(step);
        let time = |number: i64| DateTime::from_timestamp(number * step, 0);
        (first..=last).filter_map(time).map(|time| (time, time.format(format).to_string())).collect()
    }
}

/// Returns the drawing with its key; nothing if no moment is known.
pub fn figure(lane: &LaneReport) -> String {
    let Some(axis) = Axis::of(lane) else { return String::new() };
    let order: Vec<&TimelineCatalog> = timelines::forest(&lane.catalogue).into_iter().map(|(_, one)| one).collect();
    let height = TOP + ROW * order.len().max(1);
    let mut svg = grid(&axis, height);
    let drawing = Drawing { lane, axis, order: &order };
    (0..order.len()).for_each(|row| drawing.forks(row, &mut svg));
    (0..order.len()).for_each(|row| drawing.row(row, &mut svg));
    let rows: Vec<serde_json::Value> = order.iter().map(|timeline| drawing.data(timeline)).collect();
    let (from, until) = (axis.from.timestamp_millis(), axis.until.timestamp_millis());
    let data = json!({ "from": from, "until": until, "top": TOP, "height": ROW, "rows": rows });
    // A name cannot end the element that it stands in.
    let data = data.to_string().replace('<', "\\u003c");
    let (first, last) = (human::time(axis.from), human::time(axis.until));
    format!(
        "<figure>\n<svg class=\"chart\" height=\"{height}\" role=\"group\" aria-label=\"Timelines from {first} to {last}; the \
         tables below say the same\">\n{svg}<line class=\"needle\" x1=\"0\" x2=\"0\" y1=\"{TOP}\" y2=\"{height}\"/>\n</svg>\n\
         <figcaption>\n<output aria-live=\"off\">Point at the drawing, or move through its marks with the tab key, for the time \
         and the position in the log.</output>\n{}</figcaption>\n<script type=\"application/json\">{data}</script>\n</figure>\n",
        key()
    )
}

fn grid(axis: &Axis, height: usize) -> String {
    let mut svg = format!("<line class=\"axis\" x1=\"0\" x2=\"100%\" y1=\"{TOP}\" y2=\"{TOP}\"/>\n");
    for (class, most) in [("wide", 9), ("narrow", 3)] {
        svg.push_str(&format!("<g class=\"{class}\">\n"));
        for (time, text) in axis.ticks(most) {
            let x = axis.x(time);
            let anchor = match x {
                ..8.0 => "start",
                92.0.. => "end",
                _ => "middle",
            };
            svg.push_str(&format!(
                "<line class=\"grid\" x1=\"{x:.3}%\" x2=\"{x:.3}%\" y1=\"{TOP}\" y2=\"{height}\"/>\
                 <text class=\"tick\" x=\"{x:.3}%\" y=\"26\" text-anchor=\"{anchor}\">{}</text>\n",
                escaped(&text)
            ));
        }
        // The day, where the ticks are parts of it.
        if (axis.until - axis.from).num_seconds() < 86_400 {
            let day = axis.from.format("%d %b %Y, UTC");
            svg.push_str(&format!("<text class=\"tick\" x=\"0\" y=\"10\">{day}</text>\n"));
        } else {
            svg.push_str("<text class=\"tick\" x=\"0\" y=\"10\">UTC</text>\n");
        }
        svg.push_str("</g>\n");
    }
    svg
}

struct Drawing<'a> {
    lane: &'a LaneReport,
    axis: Axis,
    order: &'a [&'a TimelineCatalog],
}

impl Drawing<'_> {
    fn told(&self, timeline: TimelineId) -> Option<&Chronicle> {
        self.lane.chronicle(timeline)
    }

    /// When a timeline began, as nearly as the log tells.
    fn began(&self, timeline: &TimelineCatalog) -> Option<Time> {
        let fork = timeline.history.as_ref().and_then(|history| history.forks().last());
        let before = fork.and_then(|fork| self.told(fork.parent)?.time_of(fork.at)).map(|time| time.to_utc());
        let own = || self.told(timeline.timeline)?.clock.first().map(|(_, time)| time.to_utc());
        before.or_else(own)
    }

    fn ended(&self, timeline: &TimelineCatalog) -> Option<Time> {
        self.told(timeline.timeline)?.clock.last().map(|(_, time)| time.to_utc())
    }

    /// The lines from parents to children, under everything else.
    fn forks(&self, row: usize, svg: &mut String) {
        let timeline = self.order[row];
        let Some(fork) = timeline.history.as_ref().and_then(|history| history.forks().last()) else { return };
        let Some(parent) = self.order.iter().position(|one| one.timeline == fork.parent) else { return };
        let Some(began) = self.began(timeline) else { return };
        let (x, from, to) = (self.axis.x(began), TOP + ROW * parent + MIDDLE, TOP + ROW * row + MIDDLE);
        let title = format!(
            "timeline {} forked off timeline {} at {}: {}",
            timeline.timeline, fork.parent, fork.at, fork.reason
        );
        svg.push_str(&format!(
            "<g tabindex=\"0\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>\
             <line class=\"fork\" x1=\"{x:.3}%\" x2=\"{x:.3}%\" y1=\"{from}\" y2=\"{to}\"/>\
             <circle class=\"forked\" cx=\"{x:.3}%\" cy=\"{from}\" r=\"3\"/>\
             <circle class=\"hit\" cx=\"{x:.3}%\" cy=\"{from}\" r=\"8\"/></g>\n",
            title = escaped(&title)
        ));
    }

    fn row(&self, row: usize, svg: &mut String) {
        let timeline = self.order[row];
        let top = TOP + ROW * row;
        let writer =
            timeline.owner.as_ref().map_or_else(String::new, |owner| format!("written by {}", shortened(&owner.host)));
        let waits = if timeline.waits_for.is_some() { " · does not count yet" } else { "" };
        svg.push_str(&format!(
            "<text x=\"0\" y=\"{}\">Timeline {}<tspan dx=\"10\" class=\"sub\" fill=\"currentColor\">{}{waits}</tspan></text>\n",
            top + 18,
            timeline.timeline,
            escaped(&writer)
        ));
        let (began, ended) = (self.began(timeline), self.ended(timeline));
        if let Some((began, ended)) = began.zip(ended) {
            svg.push_str(&bar("log", &self.axis, began, ended, top + MIDDLE - 2, 4, None));
        }
        for (from, to, title) in self.bands(timeline) {
            svg.push_str(&bar("band", &self.axis, from, to, top + MIDDLE - HALF, 2 * HALF, Some(&title)));
        }
        let Some(told) = self.told(timeline.timeline) else { return };
        for gap in &told.gaps {
            let title = format!("{} segments are missing from {} on", gap.segments, gap.first);
            let (after, before) = (gap.after.map(|time| time.to_utc()), gap.before.map(|time| time.to_utc()));
            if let Some((after, before)) = after.or(before).zip(before.or(after)) {
                svg.push_str(&bar("gap", &self.axis, after, before, top + MIDDLE - HALF, 2 * HALF, Some(&title)));
            }
        }
        let skipped = told.events.len().saturating_sub(MARKS);
        for event in &told.events[skipped..] {
            if let Some(time) = event.time {
                let title = format!("{}: {} at {}", events::time(event), events::sentence(event), event.at);
                svg.push_str(&mark(shape(event), self.axis.x(time.to_utc()), top + MIDDLE, &title));
            }
        }
        for manifest in self.lane.catalogue.backups.iter().filter(|one| one.envelope.timeline == timeline.timeline) {
            let envelope = &manifest.envelope;
            let (time, size) = (human::time(envelope.stopped_at), human::bytes(envelope.bytes));
            let title = format!("{time}: backup {} ended at {}, {size}", envelope.backup, envelope.stop_lsn);
            svg.push_str(&mark(Shape::Backup, self.axis.x(envelope.stopped_at), top + MIDDLE, &title));
        }
    }

    /// Stretches of the timeline itself that can be restored, with their titles.
    fn bands(&self, timeline: &TimelineCatalog) -> Vec<(Time, Time, String)> {
        let begin = timeline.history.as_ref().and_then(|history| history.forks().last()).map(|fork| fork.at);
        let reached = self.lane.reached.iter().flatten().filter(|reach: &&Reach| reach.timeline == timeline.timeline);
        let own = reached.flat_map(|reach| &reach.restorable).filter(|one| begin.is_none_or(|begin| one.to > begin));
        own.map(|one| {
            let forked = begin.filter(|begin| *begin > one.from).and_then(|_| self.began(timeline));
            let from = forked.map_or(one.from_time, |forked| forked.max(one.from_time));
            let to = one.to_time.map_or(from, |time| time.to_utc()).max(from);
            let then = match &one.end {
                ReachEnd::Newest => "the newest archived".to_owned(),
                ReachEnd::Hole { missing, .. } => format!("then {missing} is missing"),
                ReachEnd::Broken => "then the log is damaged".to_owned(),
            };
            let (first, last) = (human::time(from), human::time(to));
            let title =
                format!("timeline {}: restorable from {first} to {last} ({}); {then}", timeline.timeline, one.to);
            (from, to, title)
        })
        .collect()
    }

    /// What the page's script knows of a row.
    fn data(&self, timeline: &TimelineCatalog) -> serde_json::Value {
        let clock = self.told(timeline.timeline).map_or(&[][..], |told| &told.clock);
        let step = clock.len().div_ceil(CLOCK).max(1);
        let last = clock.last().filter(|_| !clock.len().is_multiple_of(step));
        let clock = clock.iter().step_by(step).chain(last);
        let clock: Vec<_> = clock.map(|(at, time)| json!([time.to_utc().timestamp_millis(), at])).collect();
        let bands = self.bands(timeline);
        let bands: Vec<_> =
            bands.iter().map(|(from, to, _)| json!([from.timestamp_millis(), to.timestamp_millis()])).collect();
        json!({ "timeline": timeline.timeline, "clock": clock, "bands": bands })
    }
}

/// A name that leaves room on a narrow page; the table has it whole.
fn shortened(host: &str) -> String {
    const MOST: usize = 20;
    match host.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &host[..end]),
        None => host.to_owned(),
    }
}

fn bar(class: &str, axis: &Axis, from: Time, to: Time, y: usize, height: usize, title: Option<&str>) -> String {
    let (x, end) = (axis.x(from), axis.x(to));
    // What took no time is still to be seen.
    let width = (end - x).max(0.4);
    let (attributes, title) = match title.map(escaped) {
        Some(title) => {
            (format!(" tabindex=\"0\" role=\"img\" aria-label=\"{title}\" rx=\"2\""), format!("<title>{title}</title>"))
        }
        None => (String::new(), String::new()),
    };
    format!(
        "<rect class=\"{class}\" x=\"{x:.3}%\" width=\"{width:.3}%\" y=\"{y}\" height=\"{height}\"{attributes}>{title}</rect>\n"
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Backup,
    Point,
    Drop,
    Soft,
}

fn shape(event: &Event) -> Shape {
    match &event.what {
        Happening::RestorePoint { .. } => Shape::Point,
        Happening::TablespaceCreated { .. } | Happening::Relation { removal: Removal::Rewritten, .. } => Shape::Soft,
        _ => Shape::Drop,
    }
}

impl Shape {
    const fn drawn(self) -> &'static str {
        match self {
            Shape::Backup => "<path class=\"backup\" d=\"M0-7 6 0 0 7-6 0z\"/>",
            Shape::Point => "<path class=\"point\" d=\"M-1 11V-17H9L6-13 9-9H1V11z\"/>",
            Shape::Drop => "<path class=\"drop\" d=\"M-5-5 5 5M5-5-5 5\"/>",
            Shape::Soft => "<path class=\"soft\" d=\"M0-6V6\"/>",
        }
    }
}

fn mark(shape: Shape, x: f64, y: usize, title: &str) -> String {
    let (title, drawn) = (escaped(title), shape.drawn());
    format!(
        "<svg x=\"{x:.3}%\" y=\"{y}\" overflow=\"visible\" tabindex=\"0\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>\
         {drawn}<circle class=\"hit\" r=\"10\"/></svg>\n"
    )
}

fn key() -> String {
    let shapes = [
        ("<rect class=\"band\" x=\"1\" y=\"1\" width=\"16\" height=\"12\" rx=\"2\"/>", "can be restored to any moment"),
        ("<rect class=\"log\" y=\"5\" width=\"18\" height=\"4\"/>", "archived log only"),
        ("<rect class=\"gap\" x=\"1\" y=\"1\" width=\"16\" height=\"12\" rx=\"2\"/>", "log is missing"),
        ("<g transform=\"translate(9 7)\">BACKUP</g>", "backup"),
        ("<g transform=\"translate(6 10) scale(.7)\">POINT</g>", "restore point"),
        ("<g transform=\"translate(9 7)\">DROP</g>", "dropped or truncated"),
        ("<g transform=\"translate(9 7)\">SOFT</g>", "rewritten, or tablespace created"),
        (
            "<line class=\"fork\" x1=\"9\" x2=\"9\" y1=\"0\" y2=\"14\"/><circle class=\"forked\" cx=\"9\" cy=\"2\" r=\"3\"/>",
            "fork",
        ),
    ];
    let item = |(shape, text): (&str, &str)| {
        let named = [("BACKUP", Shape::Backup), ("POINT", Shape::Point), ("DROP", Shape::Drop), ("SOFT", Shape::Soft)];
        let shape = named.iter().fold(shape.to_owned(), |text, (name, shape)| text.replace(name, shape.drawn()));
        format!("<li><svg aria-hidden=\"true\">{shape}</svg>{text}</li>\n")
    };
    format!("<ul class=\"key\">\n{}</ul>\n", shapes.map(item).concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn axis(from: &str, until: &str) -> Axis {
        Axis { from: from.parse().unwrap(), until: until.parse().unwrap() }
    }

    #[test]
    fn ticks_are_round_and_few_whatever_the_span() {
        let from: Time = "2026-11-21T13:30:07Z".parse().unwrap();
        for seconds in [1, 5, 61, 3_000, 86_401, 700_000, 40_000_000, 900_000_000] {
            for most in [3, 9] {
                let axis = Axis { from, until: from + TimeDelta::seconds(seconds) };
                let ticks = axis.ticks(most);
                assert!(ticks.len() <= most as usize + 1, "{} ticks over {seconds} s", ticks.len());
                assert!(ticks.iter().all(|(time, _)| (axis.from..=axis.until).contains(time)));
            }
        }
        let ticks = axis("2026-11-21T13:30:07Z", "2026-11-21T17:10:00Z").ticks(9);
        assert_eq!(ticks[0].1, "14:00");
    }

    #[test]
    fn the_axis_runs_from_left_to_right() {
        let axis = axis("2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z");
        assert_eq!(axis.x(axis.from), 0.0);
        assert_eq!(axis.x("2026-11-21T06:00:00Z".parse().unwrap()), 25.0);
        assert_eq!(axis.x(axis.until + TimeDelta::days(9)), 100.0);
    }
}
