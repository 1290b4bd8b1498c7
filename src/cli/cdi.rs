//! `--device VENDOR/CLASS=NAME`, `--gpus`, and `kelp cdi ...`: the files of the Container Device Interface, found
//! where vendors and users put them.

use std::fmt::Write as _;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::table::{self, Column};
use crate::cli::warn;
use crate::error::Error;
use crate::spec::cdi::{self, Named, QualifiedName, Specification};
use crate::spec::request::Request;

/// Where files are looked for; those of a later folder hide those of an earlier one.
const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Where the files are, for `run` and `create`.
#[derive(Clone, Debug, Default, Args)]
pub struct CdiArgs {
    /// Where CDI files are [default: /etc/cdi, /var/run/cdi]
    #[arg(long, value_name = "DIR", help_heading = "Root")]
    pub cdi_spec_dir: Vec<PathBuf>,
    /// Give NVIDIA devices: all, or their names in the CDI file, as by --device nvidia.com/gpu=NAME
    #[arg(long, value_name = "NAME,...", help_heading = "Root")]
    pub gpus: Option<String>,
}

/// Work with files of the Container Device Interface
#[derive(Debug, Args)]
pub struct CdiVerbs {
    #[command(subcommand)]
    verb: CdiVerb,
}

#[derive(Debug, Subcommand)]
enum CdiVerb {
    #[command(visible_alias = "ls")]
    List(ListArgs),
    Generate(GenerateArgs),
}

/// List the devices that --device knows by name
#[derive(Debug, Args)]
struct ListArgs {
    /// Where CDI files are [default: /etc/cdi, /var/run/cdi]
    #[arg(long, value_name = "DIR")]
    cdi_spec_dir: Vec<PathBuf>,
    /// Print only names
    #[arg(short, long)]
    quiet: bool,
    /// A Go template, `json`, or `table TEMPLATE`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Write a CDI file for the NVIDIA devices that you can see
#[derive(Debug, Args)]
struct GenerateArgs {
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Look in this folder instead of /
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    root: PathBuf,
}

pub fn run(arguments: CdiVerbs) -> Result<i32> {
    match arguments.verb {
        CdiVerb::List(arguments) => list(&arguments),
        CdiVerb::Generate(arguments) => generate(&arguments),
    }
}

/// A file and where it was found.
struct Found {
    path: PathBuf,
    specification: Specification,
}

/// All files of the folders, by path. One that can't be read is said, and is an error only if nothing else has
/// the device.
fn find(folders: &[PathBuf]) -> Vec<Found> {
    let defaults = FOLDERS.map(PathBuf::from);
    let folders = if folders.is_empty() { &defaults[..] } else { folders };
    let mut found = Vec::new();
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let kind = path.extension().and_then(|end| end.to_str());
            let Some(is_json) =
                kind.filter(|end| ["json", "yaml", "yml"].contains(end)).map(|end| end == "json")
            else {
                continue;
            };
            match read(&path, is_json) {
                Ok(specification) => found.push(Found { path, specification }),
                Err(error) => warn(&format!("{error:#}")),
            }
        }
    }
    found
}

fn read(path: &Path, is_json: bool) -> Result<Specification> {
    let text = std::fs::read_to_string(path).map_err(anyhow::Error::from);
    text.and_then(|text| cdi::parse(&text, is_json))
        .with_context(|| format!("cannot use the CDI file {}", path.display()))
}

/// Adds the devices `names` and `--gpus` to `request`.
pub fn add(request: &mut Request, names: &[QualifiedName], arguments: &CdiArgs) -> Result<()> {
    let gpus = arguments.gpus.as_deref().unwrap_or_default();
    let gpu = |name: &str| QualifiedName { kind: "nvidia.com/gpu".into(), device: name.to_owned() };
    let gpus =
        gpus.trim_matches('"').trim_start_matches("device=").split(',').filter(|name| !name.is_empty());
    let names: Vec<QualifiedName> = names.iter().cloned().chain(gpus.map(gpu)).collect();
    if names.is_empty() {
        return Ok(());
    }
    let found = find(&arguments.cdi_spec_dir);
    let mut chosen: Vec<(&Specification, Vec<&Named>)> = Vec::new();
    for name in &names {
        let has = |specification: &Specification| specification.kind == name.kind;
        let device = found.iter().rev().filter(|file| has(&file.specification)).find_map(|file| {
            let device = file.specification.devices.iter().find(|device| device.name == name.device)?;
            Some((&file.specification, device))
        });
        let (specification, device) = device.ok_or_else(|| unknown(name, &found))?;
        match chosen.iter_mut().find(|(known, _)| std::ptr::eq(*known, specification)) {
            Some((_, devices)) if devices.iter().any(|known| std::ptr::eq(*known, device)) => {}
            Some((_, devices)) => devices.push(device),
            None => chosen.push((specification, vec![device])),
        }
    }
    cdi::apply(request, &chosen)
}

fn unknown(name: &QualifiedName, found: &[Found]) -> Error {
    let sentence = format!("--device {}={}: no CDI file has this device", name.kind, name.device);
    let hint = match found.first() {
        _ if name.kind == "nvidia.com/gpu" => "kelp cdi generate -o DIR/nvidia.json, then --cdi-spec-dir DIR",
        Some(_) => "see `kelp cdi list`",
        None => "there are none in /etc/cdi and /var/run/cdi; --cdi-spec-dir names another folder",
    };
    Error::usage(sentence).hint(hint)
}

fn list(arguments: &ListArgs) -> Result<i32> {
    let mut rows: Vec<Value> = Vec::new();
    for file in find(&arguments.cdi_spec_dir).iter().rev() {
        for device in &file.specification.devices {
            let name = format!("{}={}", file.specification.kind, device.name);
            if !rows.iter().any(|row| row["Name"] == name.as_str()) {
                rows.push(json!({ "Name": name, "File": file.path.display().to_string() }));
            }
        }
    }
    rows.sort_by_key(|row| row["Name"].to_string());
    if arguments.quiet {
        rows.iter().filter_map(|row| row["Name"].as_str()).for_each(|name| println!("{name}"));
        return Ok(0);
    }
    let columns = [Column::new("DEVICE", "Name"), Column::new("FILE", "File")];
    table::print(&rows, &columns, arguments.format.as_deref(), true)?;
    Ok(0)
}

fn generate(arguments: &GenerateArgs) -> Result<i32> {
    let specification = nvidia(&arguments.root)?;
    let mut text = serde_json::to_string_pretty(&specification)?;
    text.push('\n');
    match &arguments.output {
        None => print!("{text}"),
        Some(file) => {
            if file.extension().is_none_or(|end| end != "json") {
                return Err(Error::usage(format!("-o {}: the name must end in .json", file.display())).into());
            }
            std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    Ok(0)
}

/// Nodes that every program on an NVIDIA device opens.
const SHARED: [&str; 4] = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];
/// The driver's part in user space, by the beginnings of its files' names.
const LIBRARIES: [&str; 6] =
    ["libcuda.so", "libnvidia-", "libnvcuvid.so", "libnvoptix.so", "libcudadebugger.so", "libEGL_nvidia.so"];
const PROGRAMS: [&str; 5] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
];
const LIBRARY_FOLDERS: [&str; 5] =
    ["usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib", "usr/lib/wsl/lib", "opt/nvidia/lib64"];

/// The NVIDIA devices that are seen below `root`: nodes, the driver's libraries and programs.
fn nvidia(root: &Path) -> Result<Value> {
    let is_node = |path: &Path| path.metadata().is_ok_and(|found| found.file_type().is_char_device());
    let node =
        |name: &str| json!({ "path": format!("/dev/{name}"), "hostPath": root.join("dev").join(name) });
    let number = |name: &str| name.strip_prefix("nvidia")?.parse::<u32>().ok();
    let mut numbers: Vec<u32> = names(&root.join("dev")).iter().filter_map(|name| number(name)).collect();
    numbers.retain(|number| is_node(&root.join(format!("dev/nvidia{number}"))));
    numbers.sort_unstable();
    if numbers.is_empty() {
        return Err(Error::host("there is no NVIDIA device: no node /dev/nvidiaN")
            .hint("is the driver loaded, and are you on the machine with the device?")
            .into());
    }
    let device = |number: &u32| json!({ "name": number.to_string(), "containerEdits": { "deviceNodes": [node(&format!("nvidia{number}"))] } });
    let mut devices: Vec<Value> = numbers.iter().map(device).collect();
    let all: Vec<Value> = numbers.iter().map(|number| node(&format!("nvidia{number}"))).collect();
    devices.push(json!({ "name": "all", "containerEdits": { "deviceNodes": all } }));
    let shared = SHARED.iter().filter(|name| is_node(&root.join("dev").join(name)));
    let (mounts, folders) = driver(root);
    let mut hooks = Vec::new();
    if !folders.is_empty() {
        let mut words = vec!["nvidia-ctk".to_owned(), "hook".to_owned(), "update-ldcache".to_owned()];
        words.extend(folders.iter().flat_map(|folder| ["--folder".to_owned(), folder.clone()]));
        hooks.push(json!({ "hookName": "createContainer", "path": "/usr/bin/nvidia-ctk", "args": words }));
    }
    Ok(json!({
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": devices,
        "containerEdits": {
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": shared.map(|name| node(name)).collect::<Vec<_>>(),
            "mounts": mounts,
            "hooks": hooks,
        },
    }))
}

/// The driver's files as mounts, and the folders of its libraries as the container sees them.
fn driver(root: &Path) -> (Vec<Value>, Vec<String>) {
    let (mut mounts, mut folders) = (Vec::new(), Vec::new());
    let mut mount = |folder: &str, name: &str| {
        let mut inside = String::new();
        let _ = write!(inside, "/{folder}/{name}");
        let options = ["ro", "nosuid", "nodev", "rbind", "rprivate"];
        mounts.push(
            json!({ "hostPath": root.join(folder).join(name), "containerPath": inside, "options": options }),
        );
    };
    for folder in LIBRARY_FOLDERS {
        // A link to a folder that is looked at anyway, such as /usr/lib64 on some distributions.
        if root.join(folder).is_symlink() {
            continue;
        }
        let wanted =
            |name: &&String| LIBRARIES.iter().any(|start| name.starts_with(start)) && name.contains(".so");
        let found = names(&root.join(folder));
        for name in found.iter().filter(wanted) {
            mount(folder, name);
        }
        if found.iter().any(|name| wanted(&name)) {
            folders.push(format!("/{folder}"));
        }
    }
    for name in PROGRAMS.iter().filter(|name| root.join("usr/bin").join(name).exists()) {
        mount("usr/bin", name);
    }
    (mounts, folders)
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}
