//! What a pull says while it works: bars with speed and remaining time on a terminal, one plain line an event
//! elsewhere (`CI`, `NO_COLOR`, a pipe), nothing with `--quiet`. Everything goes to standard error; ids and
//! names, which programs read, go to standard output.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::image::pull::Event;
use crate::image::reference::Digest;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Quiet,
    Lines,
    Bars,
}

/// The face of one pull.
#[derive(Debug)]
pub struct Shown {
    manner: Manner,
    bars: MultiProgress,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Shown {
    pub fn new(quiet: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let manner = if quiet {
            Manner::Quiet
        } else if std::io::stderr().is_terminal() && !set("CI") && !set("NO_COLOR") {
            Manner::Bars
        } else {
            Manner::Lines
        };
        Self { manner, bars: MultiProgress::new(), layers: Mutex::default() }
    }

    pub fn event(&self, event: &Event<'_>) {
        match self.manner {
            Manner::Quiet => {}
            Manner::Lines => line(event),
            Manner::Bars => self.bar(event),
        }
    }

    pub fn finish(&self) {
        let _ = self.bars.clear();
    }

    fn bar(&self, event: &Event<'_>) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        match *event {
            Event::Asking(reference) => drop(self.bars.println(format!("pulling {reference}"))),
            Event::Known(layer) => drop(self.bars.println(format!("{}: already here", layer.short()))),
            Event::Received { layer, bytes, of } => {
                let bar = layers.entry(layer.clone()).or_insert_with(|| self.bars.add(fresh_bar(layer, of)));
                bar.set_position(bytes);
            }
            Event::Waiting(layer) | Event::Broke { layer, .. } => {
                let text = if matches!(event, Event::Waiting(_)) {
                    "waiting for another kelp"
                } else {
                    "reconnecting"
                };
                if let Some(bar) = layers.get(layer) {
                    bar.set_message(text);
                }
            }
            Event::Unpacked(layer) => {
                if let Some(bar) = layers.remove(layer) {
                    bar.finish_and_clear();
                }
                let _ = self.bars.println(format!("{}: unpacked", layer.short()));
            }
        }
    }
}

fn fresh_bar(layer: &Digest, size: u64) -> ProgressBar {
    let bar = ProgressBar::new(size);
    let template = "{prefix} {wide_bar} {binary_bytes:>10}/{binary_total_bytes} {binary_bytes_per_sec:>12} {eta:>4} {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(layer.short().to_owned());
    bar
}

fn line(event: &Event<'_>) {
    match event {
        Event::Asking(reference) => eprintln!("pulling {reference}"),
        Event::Known(layer) => eprintln!("{}: already here", layer.short()),
        Event::Unpacked(layer) => eprintln!("{}: unpacked", layer.short()),
        Event::Broke { layer, bytes } => {
            eprintln!("{}: broke off at byte {bytes}, reconnecting", layer.short())
        }
        Event::Waiting(_) | Event::Received { .. } => {}
    }
}
