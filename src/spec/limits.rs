//! The one table of limits: flag, unit, docker's and OCI's names, the names of cgroup v1 that texts still use, and
//! what is written where for each. Flags, help, `update`, JSON and reference pages are made from it; a limit is a
//! row here. Its words are parsed in `resources`; what the machine can enforce is found by the room `cgroup`.

/// How a value is written by people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A size; -1 is unlimited.
    Bytes,
    /// A count; 0 and -1 are unlimited.
    Count,
    /// A fraction of processors, kept in billionths.
    Cpus,
    Microseconds,
    /// A number in a range.
    Range(u64, u64),
    /// A list of processors or memory nodes: `0-2,4`.
    Set,
    /// DEVICE:NUMBER, where the number is in bytes or operations a second; may be given several times.
    Device(Rate),
    /// FILE=VALUE of the cgroup itself; may be given several times.
    Pairs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Bytes,
    Operations,
}

/// Where the kernel takes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// As it is.
    Plain(&'static str),
    /// A part of `cpu.max`.
    CpuMax,
    /// `memory.swap.max`, which does not count memory: docker's number does.
    Swap,
    /// Shares of cgroup v1, 2 to 262144, to a weight of 1 to 10000.
    Shares,
    /// docker's weight of 10 to 1000 to the kernel's of 1 to 10000.
    IoWeight,
    /// A key of `io.max`.
    IoMax(&'static str),
    /// Whatever the pair names.
    Named,
}

/// What stands in for the kernel where no controller is delegated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Soft {
    /// The watcher of `cgroup::soft` holds it.
    Watched,
    /// The program starts with it: affinity, nice value, I/O priority.
    Inherited,
    /// The user-space overlay holds replies back, if the root lies on that device.
    Throttled,
    /// Nothing does.
    None,
}

/// One limit.
#[derive(Debug)]
pub struct Limit {
    pub flag: &'static str,
    pub short: Option<char>,
    pub value: &'static str,
    pub unit: Unit,
    pub file: File,
    /// The place in docker's `HostConfig`.
    pub docker: &'static str,
    /// The place below `linux.resources` of a runtime specification.
    #[cfg_attr(not(test), expect(dead_code, reason = "the door of runtime specifications reads it"))]
    pub oci: &'static str,
    /// The name in cgroup v1, taken by `--cgroup-conf` too.
    pub v1: &'static str,
    pub soft: Soft,
    pub help: &'static str,
}

pub const MEMORY: &str = "memory";
pub const MEMORY_SWAP: &str = "memory-swap";
pub const CPUS: &str = "cpus";
pub const CPU_PERIOD: &str = "cpu-period";
pub const CPU_QUOTA: &str = "cpu-quota";
pub const BLKIO_WEIGHT: &str = "blkio-weight";
pub const CPU_SHARES: &str = "cpu-shares";
pub const CPUSET: &str = "cpuset-cpus";
pub const PIDS: &str = "pids-limit";
pub const RESERVATION: &str = "memory-reservation";

const DEFAULTS: Limit = Limit {
    flag: "",
    short: None,
    value: "N",
    unit: Unit::Count,
    file: File::Named,
    docker: "",
    oci: "",
    v1: "",
    soft: Soft::None,
    help: "",
};

/// All limits, in the order of the help.
pub const TABLE: &[Limit] = &[
    Limit {
        flag: MEMORY,
        short: Some('m'),
        value: "BYTES",
        unit: Unit::Bytes,
        file: File::Plain("memory.max"),
        docker: "Memory",
        oci: "memory.limit",
        v1: "memory.limit_in_bytes",
        soft: Soft::Watched,
        help: "Memory that the container may use",
    },
    Limit {
        flag: MEMORY_SWAP,
        value: "BYTES",
        unit: Unit::Bytes,
        file: File::Swap,
        docker: "MemorySwap",
        oci: "memory.swap",
        v1: "memory.memsw.limit_in_bytes",
        help: "Memory and swap together; -1 is unlimited swap [default: twice the memory]",
        ..DEFAULTS
    },
    Limit {
        flag: RESERVATION,
        value: "BYTES",
        unit: Unit::Bytes,
        file: File::Plain("memory.low"),
        docker: "MemoryReservation",
        oci: "memory.reservation",
        v1: "memory.soft_limit_in_bytes",
        help: "Memory that is left to the container when the host runs short",
        ..DEFAULTS
    },
    Limit {
        flag: "memory-high",
        value: "BYTES",
        unit: Unit::Bytes,
        file: File::Plain("memory.high"),
        docker: "MemoryHigh",
        oci: "unified.memory.high",
        help: "Memory above which the container is slowed down and made to free some",
        ..DEFAULTS
    },
    Limit {
        flag: CPUS,
        unit: Unit::Cpus,
        file: File::CpuMax,
        docker: "NanoCpus",
        soft: Soft::Watched,
        help: "Processors' time, such as 1.5",
        ..DEFAULTS
    },
    Limit {
        flag: CPU_PERIOD,
        value: "USEC",
        unit: Unit::Microseconds,
        file: File::CpuMax,
        docker: "CpuPeriod",
        oci: "cpu.period",
        v1: "cpu.cfs_period_us",
        soft: Soft::Watched,
        help: "Length of the scheduler's periods [default: 100000]",
        ..DEFAULTS
    },
    Limit {
        flag: CPU_QUOTA,
        value: "USEC",
        unit: Unit::Microseconds,
        file: File::CpuMax,
        docker: "CpuQuota",
        oci: "cpu.quota",
        v1: "cpu.cfs_quota_us",
        soft: Soft::Watched,
        help: "Processors' time within each period",
        ..DEFAULTS
    },
    Limit {
        flag: CPU_SHARES,
        short: Some('c'),
        value: "SHARES",
        unit: Unit::Range(2, 262_144),
        file: File::Shares,
        docker: "CpuShares",
        oci: "cpu.shares",
        v1: "cpu.shares",
        soft: Soft::Inherited,
        help: "Weight when processors are busy, 2 to 262144; 1024 is everybody's",
    },
    Limit {
        flag: CPUSET,
        value: "LIST",
        unit: Unit::Set,
        file: File::Plain("cpuset.cpus"),
        docker: "CpusetCpus",
        oci: "cpu.cpus",
        v1: "cpuset.cpus",
        soft: Soft::Inherited,
        help: "Processors to run on: 0-2,4",
        ..DEFAULTS
    },
    Limit {
        flag: "cpuset-mems",
        value: "LIST",
        unit: Unit::Set,
        file: File::Plain("cpuset.mems"),
        docker: "CpusetMems",
        oci: "cpu.mems",
        v1: "cpuset.mems",
        help: "Memory nodes to allocate from",
        ..DEFAULTS
    },
    Limit {
        flag: PIDS,
        unit: Unit::Count,
        file: File::Plain("pids.max"),
        docker: "PidsLimit",
        oci: "pids.limit",
        v1: "pids.max",
        soft: Soft::Watched,
        help: "How many processes and threads there may be; -1 is unlimited",
        ..DEFAULTS
    },
    Limit {
        flag: BLKIO_WEIGHT,
        value: "WEIGHT",
        unit: Unit::Range(10, 1000),
        soft: Soft::Inherited,
        file: File::IoWeight,
        docker: "BlkioWeight",
        oci: "blockIO.weight",
        v1: "blkio.weight",
        help: "Weight when block devices are busy, 10 to 1000",
        ..DEFAULTS
    },
    Limit {
        flag: "device-read-bps",
        value: "DEVICE:BYTES",
        unit: Unit::Device(Rate::Bytes),
        file: File::IoMax("rbps"),
        docker: "BlkioDeviceReadBps",
        oci: "blockIO.throttleReadBpsDevice",
        v1: "blkio.throttle.read_bps_device",
        soft: Soft::Throttled,
        help: "Bytes a second that are read from a block device",
        ..DEFAULTS
    },
    Limit {
        flag: "device-write-bps",
        value: "DEVICE:BYTES",
        unit: Unit::Device(Rate::Bytes),
        file: File::IoMax("wbps"),
        docker: "BlkioDeviceWriteBps",
        oci: "blockIO.throttleWriteBpsDevice",
        v1: "blkio.throttle.write_bps_device",
        soft: Soft::Throttled,
        help: "Bytes a second that are written to a block device",
        ..DEFAULTS
    },
    Limit {
        flag: "device-read-iops",
        value: "DEVICE:N",
        unit: Unit::Device(Rate::Operations),
        file: File::IoMax("riops"),
        docker: "BlkioDeviceReadIOps",
        oci: "blockIO.throttleReadIOPSDevice",
        v1: "blkio.throttle.read_iops_device",
        soft: Soft::Throttled,
        help: "Reads a second from a block device",
        ..DEFAULTS
    },
    Limit {
        flag: "device-write-iops",
        value: "DEVICE:N",
        unit: Unit::Device(Rate::Operations),
        file: File::IoMax("wiops"),
        docker: "BlkioDeviceWriteIOps",
        oci: "blockIO.throttleWriteIOPSDevice",
        v1: "blkio.throttle.write_iops_device",
        soft: Soft::Throttled,
        help: "Writes a second to a block device",
        ..DEFAULTS
    },
    Limit {
        flag: "cgroup-conf",
        value: "FILE=VALUE",
        unit: Unit::Pairs,
        file: File::Named,
        docker: "CgroupConf",
        oci: "unified",
        help: "Write a file of the cgroup: hugetlb.2MB.max=0; names of cgroup v1 are taken too",
        ..DEFAULTS
    },
];

/// The row of a flag.
pub fn row(flag: &str) -> Option<&'static Limit> {
    TABLE.iter().find(|limit| limit.flag == flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `linux.resources` has in version 1.2 of the runtime specification (`config-linux.md`), but for what is no
    /// limit of a table: `devices`, `rdma`, `network`, `disableOOMKiller` and what v2 has no file for.
    const RUNTIME: [&str; 16] = [
        "memory.limit",
        "memory.reservation",
        "memory.swap",
        "cpu.shares",
        "cpu.quota",
        "cpu.period",
        "cpu.cpus",
        "cpu.mems",
        "pids.limit",
        "blockIO.weight",
        "blockIO.throttleReadBpsDevice",
        "blockIO.throttleWriteBpsDevice",
        "blockIO.throttleReadIOPSDevice",
        "blockIO.throttleWriteIOPSDevice",
        "unified",
        "unified.memory.high",
    ];

    #[test]
    fn each_name_of_the_runtime_specification_has_one_row() {
        for name in RUNTIME {
            assert_eq!(TABLE.iter().filter(|limit| limit.oci == name).count(), 1, "{name}");
        }
        // Processors are a quota and a period there.
        let others = TABLE.iter().filter(|limit| !RUNTIME.contains(&limit.oci)).map(|limit| limit.flag);
        assert_eq!(others.collect::<Vec<_>>(), [CPUS]);
    }

    #[test]
    fn flags_and_docker_names_are_unique() {
        for (at, limit) in TABLE.iter().enumerate() {
            let twice = |other: &Limit| other.flag == limit.flag || other.docker == limit.docker;
            assert!(!TABLE.iter().skip(at + 1).any(twice), "{}", limit.flag);
        }
    }
}
