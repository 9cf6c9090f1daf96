"""`redline campaign`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from host.cli.app import DataDir, app, console, errors
from host.cli.study import Out, Restart, interruptible, open_folder, run_folder, show_table

campaign_app = typer.Typer(help="Fault campaigns: many trials, sound statistics.", no_args_is_help=True)
app.add_typer(campaign_app, name="campaign")

Name = Annotated[str, typer.Argument(help="Name of the campaign: it lies in OUT/NAME.", metavar="RUN")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")]
Net = Annotated[str | None, typer.Option(help="Network of redline.models.  [default: lenet5]")]
Weights = Annotated[Path | None, typer.Option(help="The network's .pth or .safetensors file.")]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm", help="What to compare, repeatable: NAME[:weights=FILE][:protect=LAYER+LAYER].  [default: original]"
    ),
]
Sites = Annotated[
    str | None,
    typer.Option("--site", help="mac, weight, feature, input, several with commas; or stuck, alone.  [default: mac]"),
]
Layers = Annotated[str | None, typer.Option(help="Single faults only in these layers.", metavar="L,L,...")]
Rate = Annotated[float | None, typer.Option(help="Soft errors at this rate instead of single faults.")]
Per = Annotated[str | None, typer.Option(help="What the rate is per: mac or bit.  [default: mac]")]
Mhz = Annotated[float | None, typer.Option(help="This clock instead of single faults, or beside a rate.")]
Placement = Annotated[int | None, typer.Option(help="The clock's delay table: placement seed.  [default: 1]")]
DelayTable = Annotated[Path | None, typer.Option("--table", help="The clock's delay table: a file, instead.")]
Stuck = Annotated[
    list[str] | None,
    typer.Option(help="A bit stuck in every trial, repeatable.", metavar="LANE:BIT:VALUE[:BANK]"),
]
Images = Annotated[int | None, typer.Option(min=1, help="Images of each trial.  [default: 32]")]
TestImages = Annotated[int | None, typer.Option(min=1, help="First test images, to draw from.  [default: all]")]
Photos = Annotated[Path | None, typer.Option(help="Folder of images for each class, for networks of photos.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of faults and images.  [default: 0]")]
DeviceName = Annotated[str | None, typer.Option(help="Device of the trials.  [default: emulator, else reference]")]
Lanes = Annotated[int | None, typer.Option(help="Of the accelerator's array.  [default: 16]")]
Vec = Annotated[int | None, typer.Option(help="Of the accelerator's array.  [default: 8]")]
Memory = Annotated[int | None, typer.Option(min=1, help="Bytes of device memory.")]


def _settings(folder: Path, **given: Any) -> Any:
    """Those given, else those the campaign was made with, else the defaults."""
    from host.campaign.settings import Settings

    for key in ("sites", "layers"):
        if given.get(key) is not None:
            given[key] = tuple(part.strip() for part in given[key].split(","))
    for key in ("arms", "stuck"):
        given[key] = tuple(given[key]) if given.get(key) else None
    for key in ("weights", "photos", "table"):
        given[key] = None if given.get(key) is None else str(given[key])
    return Settings(**{**Settings.stored(folder), **{k: v for k, v in given.items() if v is not None}})


@campaign_app.command("plan")
def plan(
    half_width: Annotated[float, typer.Option(help="Wanted half-width of the interval.")] = 0.01,
    share: Annotated[float, typer.Option(help="Expected share; 0.5 is the worst case.")] = 0.5,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999)] = 0.95,
    net: Net = None,
    weights: Weights = None,
    site: Sites = None,
    layers: Layers = None,
    rate: Rate = None,
    per: Per = None,
    mhz: Mhz = None,
    placement: Placement = None,
    table: DelayTable = None,
    stuck: Stuck = None,
    images: Images = None,
    photos: Photos = None,
    device: DeviceName = None,
    lanes: Lanes = None,
    vec: Vec = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """How many trials a wanted precision needs, before anything is run. (Any device takes as many.)"""
    from host.campaign import trials
    from host.campaign.planner import plan as make

    settings = _settings(
        Path(), net=net, weights=weights, sites=site, layers=layers, rate=rate, per=per, mhz=mhz, placement=placement,
        table=table, stuck=stuck, images=images, photos=photos, device=device, lanes=lanes, vec=vec,
    )  # fmt: skip
    found = make(settings, half_width, share, confidence, data_dir)
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    show_table(found.table(), settings.net)
    for line in [trials.faults_words(settings.faults), *found.lines()]:
        console.print(line, highlight=False)


@campaign_app.command("run")
def run(
    name: Name,
    out: Out = Path("runs"),
    net: Net = None,
    weights: Weights = None,
    arm: Arms = None,
    site: Sites = None,
    layers: Layers = None,
    rate: Rate = None,
    per: Per = None,
    mhz: Mhz = None,
    placement: Placement = None,
    table: DelayTable = None,
    stuck: Stuck = None,
    images: Images = None,
    test_images: TestImages = None,
    photos: Photos = None,
    seed: Seed = None,
    device: DeviceName = None,
    lanes: Lanes = None,
    vec: Vec = None,
    memory_bytes: Memory = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Stop after this many trials.")] = None,
    half_width: Annotated[float | None, typer.Option(help="Stop when the interval is this narrow, each way.")] = None,
    of: Annotated[str, typer.Option(help="Whose interval: sdc1, sdc5, masked, benign, top1, top5.")] = "sdc1",
    minutes: Annotated[float | None, typer.Option(help="Stop after this long; the same command goes on.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes.  [default: one a core]")] = None,
    executor: Annotated[
        str, typer.Option(help="processes: on this machine; ray: on those of a Ray cluster.")
    ] = "processes",
    restart: Restart = False,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Run a campaign, or go on with it; without any stop rule, 1,000 trials.

    A campaign that was interrupted, killed or should become more precise is taken up by its name alone.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from host.campaign import campaign as module
    from host.campaign import report
    from host.campaign.stop import HalfWidth, Minutes, Rule, Trials

    folder = run_folder(out, name)
    open_folder(folder, module.started, restart=restart, goes_on=True)
    settings = _settings(
        folder, net=net, weights=weights, arms=arm, sites=site, layers=layers, rate=rate, per=per, mhz=mhz,
        placement=placement, table=table, stuck=stuck, images=images, test_images=test_images, photos=photos, seed=seed,
        device=device, lanes=lanes, vec=vec, memory_bytes=memory_bytes,
    ).resolved()  # fmt: skip
    rules: list[Rule] = []
    if half_width is not None:
        rules.append(HalfWidth(half_width, of))
    if minutes is not None:
        rules.append(Minutes(minutes))
    if trials is not None or not rules:
        rules.append(Trials(trials or 1000))
    columns = (
        TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    with interruptible():
        campaign = settings.campaign(data_dir)
        errors.print(f"device: {campaign.computed_by()}", highlight=False, soft_wrap=True)
        if not module.started(folder):
            settings.save(folder)
        with Progress(*columns, console=errors) as progress:
            task = progress.add_task("trials", total=None, note="starting workers")
            finished = campaign.run(
                rules,
                folder,
                workers=workers,
                executor=executor,
                progress=lambda done, total, note: progress.update(
                    task, completed=done, total=total or None, note=note
                ),
            )
    summary = report.summarise(folder)
    report.write(folder, summary)
    if as_json:
        print(json.dumps({"stopped": finished.reason, **summary.as_dict()}))
        return
    console.print(f"{finished.trials} trials: {finished.reason}", highlight=False)
    _show(folder, summary)


@campaign_app.command("report")
def report_command(name: Name, out: Out = Path("runs"), as_json: Json = False) -> None:
    """Rates with their intervals, comparisons of arms, CSV and figures, from what a campaign has so far."""
    from host.campaign import report

    folder = run_folder(out, name)
    summary = report.summarise(folder)
    report.write(folder, summary)
    if as_json:
        print(json.dumps(summary.as_dict()))
        return
    _show(folder, summary)


def _show(folder: Path, summary: Any) -> None:
    from host.campaign import report

    console.print(report.about(summary), highlight=False)
    for title, table in report.tables(summary):
        show_table(table, title)
    console.print(f"Report: {folder / 'report.html'} (browser), {folder / 'report.md'} (text); CSV beside it")


@campaign_app.command("replay")
def replay_command(
    name: Name,
    trial: Annotated[int, typer.Argument(min=0, help="Number of the trial.", metavar="TRIAL")],
    out: Out = Path("runs"),
    arm: Annotated[str | None, typer.Option(help="Which arm.  [default: the first]")] = None,
    image: Annotated[
        int | None, typer.Option(min=0, help="Position in the trial.  [default: where the fault did most]")
    ] = None,
    waves: Annotated[
        bool, typer.Option("--waves", help="Write waveforms (FST), with and without the fault, and show them.")
    ] = False,
    opened: Annotated[
        bool, typer.Option("--open/--no-open", help="Open GTKWave at the fault, where there is one, and a display.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Run one trial's fault on the RTL: when it happens, and how it spreads from stage to stage and layer to layer."""
    from host.campaign import replay, waveform

    folder = run_folder(out, name)
    with errors.status("running the RTL (the first build of a simulator takes a minute or two)"):
        found = replay.replay(folder, trial, arm=arm, position=image, waves=folder / "waves" if waves else None)
    view = waveform.write_view(found) if found.waves else None
    if as_json:
        shown = None if view is None else waveform.command(view)
        print(json.dumps({**found.as_dict(), "view": None if view is None else str(view), "command": shown}))
        return
    for line in found.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for path in found.waves:
        console.print(f"waveform: {path}", highlight=False, soft_wrap=True)
    if view is not None:
        console.print(f"at the cycle of the fault: {waveform.command(view)}", highlight=False, soft_wrap=True)
        if opened:
            console.print(waveform.show(view), highlight=False, soft_wrap=True)
    elif waves:
        console.print("there is no fault in the waveform to be shown", highlight=False)


def _files(files: list[Path]) -> None:
    console.print("wrote " + ", ".join(str(path) for path in files), highlight=False, soft_wrap=True)


@campaign_app.command("sensitivity")
def sensitivity_command(name: Name, out: Out = Path("runs"), arm: Annotated[str | None, typer.Option()] = None) -> None:
    """Which layers and bits matter: SDC and masking of a campaign's single faults by place; CSV and figure."""
    from host.campaign.analyses import sensitivity
    from host.studies.report.document import Table

    folder = run_folder(out, name)
    found = sensitivity.measure(folder, arm)
    body = [
        [layer, f"{shares['sdc1'].clusters:,}", *(str(shares[key]) for key in sensitivity.OUTCOMES)]
        for layer, shares in found.by_layer.items()
    ]
    show_table(Table(["layer", "faults", "SDC-1", "SDC-5", "masked"], body), f"{name}, arm {found.arm}")
    _files(sensitivity.write(folder, found))


AtRate = Annotated[
    float | None, typer.Option(help="Soft errors at this rate.  [default: 0.001, without a clock or stuck bits]")
]
OnImages = Annotated[int, typer.Option("--images", min=1, help="Test images.")]
Threshold = Annotated[int, typer.Option(min=0, help="T: an error is large if it is more.")]


@campaign_app.command("errors")
def errors_command(
    name: Name,
    rate: AtRate = None,
    per: Per = None,
    site: Sites = None,
    mhz: Mhz = None,
    placement: Placement = None,
    table: DelayTable = None,
    stuck: Stuck = None,
    threshold: Threshold = 5,
    inherited: Annotated[
        bool, typer.Option("--inherited", help="Count errors from the fault-free network, not from each layer's input.")
    ] = False,
    images: OnImages = 512,
    out: Out = Path("runs"),
    net: Net = None,
    weights: Weights = None,
    photos: Photos = None,
    seed: Seed = None,
    device: DeviceName = None,
    data_dir: DataDir = None,
) -> None:
    """How wrong each layer's outputs are under soft errors: 0, 1 to T, more than T; CSV and figure."""
    from host.campaign.analyses import errors as analysis
    from host.studies.report.document import Table

    folder = run_folder(out, name)
    bench = _bench(
        data_dir, rate=rate, per=per, sites=site, mhz=mhz, placement=placement, table=table, stuck=stuck, net=net,
        weights=weights, photos=photos, seed=seed, device=device, test_images=images,
    )  # fmt: skip
    with bench.twin() as twin:
        found = analysis.measure(
            twin, bench.faults, bench.images(), threshold=threshold, inherited=inherited, seed=bench.settings.seed
        )
    body = [[layer, *(str(shares[kind]) for kind in analysis.CLASSES)] for layer, shares in found.layers.items()]
    show_table(Table(["layer", "exact", f"1 to {threshold}", f"more than {threshold}"], body), "|error| of outputs")
    _files(analysis.write(folder, found))


@campaign_app.command("critical")
def critical_command(
    name: Name,
    rate: AtRate = None,
    per: Per = None,
    site: Sites = None,
    mhz: Mhz = None,
    placement: Placement = None,
    table: DelayTable = None,
    stuck: Stuck = None,
    threshold: Threshold = 5,
    probe_images: Annotated[int, typer.Option(min=1, help="Training images on which policies choose.")] = 256,
    images: OnImages = 2000,
    out: Out = Path("runs"),
    net: Net = None,
    weights: Weights = None,
    photos: Photos = None,
    seed: Seed = None,
    device: DeviceName = None,
    data_dir: DataDir = None,
) -> None:
    """Which layer each policy would protect, and what each choice is worth; CSV and figure."""
    from host.campaign.analyses import critical

    folder = run_folder(out, name)
    bench = _bench(
        data_dir, rate=rate, per=per, sites=site, mhz=mhz, placement=placement, table=table, stuck=stuck, net=net,
        weights=weights, photos=photos, seed=seed, device=device, test_images=images,
    )  # fmt: skip
    with bench.twin() as twin:
        found = critical.measure(
            twin, bench.faults, bench.probe(probe_images), bench.test, threshold=threshold, seed=bench.settings.seed
        )
    show_table(found.table(), "Scores; * is chosen")
    for line in found.lines():
        console.print(line, highlight=False)
    _files(critical.write(folder, found))


@campaign_app.command("cost")
def cost_command(
    name: Name,
    mhz: Annotated[float, typer.Option(min=1e-3, help="Clock of the accelerator.")] = 100.0,
    batch: Annotated[int, typer.Option(min=1, help="Images of the launch.")] = 16,
    out: Out = Path("runs"),
    net: Net = None,
    weights: Weights = None,
    photos: Photos = None,
    lanes: Lanes = None,
    vec: Vec = None,
    data_dir: DataDir = None,
) -> None:
    """What protecting each layer costs: cycles of the others and CPU time of the layer; CSV and figure."""
    from host.campaign.analyses import cost

    folder = run_folder(out, name)
    bench = _bench(
        data_dir, net=net, weights=weights, photos=photos, device="reference", test_images=batch, lanes=lanes, vec=vec
    )
    with bench.twin() as twin:
        found = cost.measure(twin.program, twin.program.quantise_input(bench.images()), mhz)
    show_table(found.table(), f"{bench.settings.net}, {batch} images, accelerator at {mhz:g} MHz")
    _files(cost.write(folder, found))


def _bench(data_dir: str | None, **given: Any) -> Any:
    from host.campaign.analyses.bench import Bench

    if given.get("rate") is None and given.get("mhz") is None and not given.get("stuck"):
        given["rate"] = 1e-3
    return Bench.of(_settings(Path(), **given), data_dir)
