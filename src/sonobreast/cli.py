"""The commands: argument parsing and words to the person, nothing else. Heavy imports stay inside the commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sonobreast.screen import (
    Progress,
    console,
    print_audit,
    print_checked,
    print_comparison,
    print_exported,
    print_inference,
    print_manifest,
    print_models,
    print_results,
    reporter,
    say_report,
    say_serving,
    staged,
)

if TYPE_CHECKING:
    from sonobreast.config import Recipe
    from sonobreast.data.cohort import Sources

app = typer.Typer(
    name="sonobreast",
    help="Train, compare, check and serve classifiers for breast ultrasound. Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich's help pages cost a third of a second
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Read and check data sets.", no_args_is_help=True, rich_markup_mode=None)
study_app = typer.Typer(help="Run a grid of trainings and report on it.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")
bundle_app = typer.Typer(help="Bundles: a network as a hospital gets it.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bundle_app, name="bundle")

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; repeatable.")
]
DataFolder = Annotated[Path, typer.Option("--data", help="Folder or CSV of the data set.")]
Weights = Annotated[str, typer.Option("--weights", help="Pre-trained weights: hub, none, or a folder.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first file that cannot be used.")]
Exclude = Annotated[
    Path | None, typer.Option("--exclude", metavar="CSV", help="Images to leave out, with reasons (image,reason).")
]
Groups = Annotated[
    Path | None,
    typer.Option("--groups", metavar="CSV", help="Which images belong together (image,group), instead of a search."),
]
OwnSplit = Annotated[
    Path | None, typer.Option("--split", metavar="CSV", help="A division of your own (image,subset[,repeat,fold]).")
]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="Which class each label is: CSV (label,class) or YAML."),
]
NoImages = Annotated[bool, typer.Option("--no-images", help="Leave images of the data set out of figures and report.")]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or the folder of a study.")]
SeveralRuns = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of studies.")]
Configuration = Annotated[
    str | None, typer.Option("--configuration", metavar="NAME", help="Of a study, such as MobileNetV2-adam.")
]
Configurations = Annotated[
    list[str] | None,
    typer.Option("--configuration", metavar="NAME", help="Only this one, such as MobileNetV2-adam; repeatable."),
]
Judged = Annotated[str, typer.Option("--subset", help="Which of the study's own images: test or validation.")]
Seed = Annotated[int, typer.Option(help="Of what is drawn.")]
Limit = Annotated[int, typer.Option(help="Images at most, drawn by class and group; 0: all.")]


def _version(value: bool) -> None:
    if value:
        from sonobreast import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del debug, version  # read before parsing (main), shown here for --help


@data_app.command("check")
def data_check(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of images, or a CSV with image,label.")],
    out: Annotated[Path, typer.Option(help="Where manifest.csv goes: a folder or a .csv file.")] = Path(),
    labels: Labels = None,
    strict: Strict = False,
) -> None:
    """Recognise a data set, open every file, print the class table and write manifest.csv."""
    from sonobreast.data import manifest as manifests
    from sonobreast.data.labels import read_mapping, relabel

    file = out if out.suffix.lower() == ".csv" else out / "manifest.csv"
    if labels is not None:
        read_mapping(labels)  # a mistake shows before the work
    with Progress() as (stage, advance, _):

        def progress(done: int, total: int) -> None:
            if done == 1:
                stage("reading images", total)
            advance()

        manifest = manifests.build(source, strict=strict, progress=progress)
    if labels is not None:
        manifest = relabel(manifest, labels)
    manifests.write(file, manifest)
    print_manifest(manifest, file)


@data_app.command("audit")
def data_audit(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of images, or a CSV with image,label.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for audit.html, audit.json, groups.csv, exclusions.csv.")],
    strict: Strict = False,
    no_images: NoImages = False,
    card: Annotated[
        Path | None, typer.Option(help="Write the known defects of a public data set, for the catalogue, too.")
    ] = None,
) -> None:
    """Find copies, wrong labels and masks, overlays and short-cuts in a data set."""
    from sonobreast.data import audit as audits
    from sonobreast.data.audit_page import write_page
    from sonobreast.data.card import compare_with_card, write_card

    audits.prepare(out)
    with Progress() as (stage, advance, _):
        result = audits.audit(source, strict=strict, progress=staged(stage, advance))
        stage("writing the page", 0)
        audits.write(out, result)
        write_page(out / "audit.html", result, images=not no_images)
    print_audit(result, out)
    if card is not None:
        write_card(card, result)
    for line in compare_with_card(result):
        console().print(line, highlight=False, soft_wrap=True)


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="Name in the catalogue, for example busi.")],
) -> None:
    """Fetch a public data set (from Kaggle, with kagglehub), or say where it is to be had."""
    from sonobreast.data.catalogue import DATA_SETS, catalogue_name, download

    folder = download(name)
    card = DATA_SETS[catalogue_name(name)]
    console().print(f"{card.title}\n  in: {folder}\n  licence: {card.licence}\n  cite: {card.citation}", soft_wrap=True)
    console().print(f"next: sonobreast data check '{folder}'", soft_wrap=True)


@data_app.command("phantom")
def data_phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the images, in the BUSI layout.")],
    n: Annotated[int, typer.Option("--n", help="Number of images.")] = 300,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the square images in pixels, 32 to 4096.")] = 256,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Draw a contact sheet with outlines into this PNG, too.")] = None,
    dicom: Annotated[Path | None, typer.Option(help="Write the first image as a DICOM file, too.")] = None,
) -> None:
    """Simulate B-mode breast ultrasound with lesions, masks and BI-RADS descriptors."""
    from sonobreast.data.contact_sheet import contact_sheet
    from sonobreast.data.phantom import write

    with Progress() as (stage, advance, _):

        def progress(done: int, total: int) -> None:
            if done == 1:
                stage("simulating", total)
            advance()

        write(out, n=n, seed=seed, size=size, force=force, progress=progress)
    if sheet is not None:
        contact_sheet(sheet, seed=seed, size=max(size, 200))
    if dicom is not None:
        from sonobreast.data.dicom_phantom import write_dicom
        from sonobreast.data.phantom import simulate

        write_dicom(dicom, simulate(0, seed=seed, size=size), seed=seed)
    terminal = console()
    terminal.print(f"{n} simulated images in {out}, with masks and manifest.csv", highlight=False, soft_wrap=True)
    terminal.print("They are simulated: nothing learned from them says anything about patients.", style="yellow")


@study_app.command("run")
def study_run(
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder of the study; the same call continues it.")],
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a YAML file.")] = "aulia2026",
    weights: Weights = "hub",
    overrides: Overrides = None,
    exclude: Exclude = None,
    groups: Groups = None,
    split: OwnSplit = None,
    labels: Labels = None,
    strict: Strict = False,
    no_images: NoImages = False,
) -> None:
    """Run architectures x optimizers (x folds x seeds) and write tables, figures and report.html."""
    from sonobreast.config import load_recipe
    from sonobreast.data.cohort import Sources

    sources = Sources(data, groups, exclude, split, strict, labels)
    _run(load_recipe(recipe, overrides or ()), sources, weights, out, images=not no_images)


@study_app.command("report")
def study_report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of a study.")],
    no_images: NoImages = False,
    prevalence: Annotated[
        list[float] | None, typer.Option(help="Share of cancer for the predictive values; repeatable.")
    ] = None,
) -> None:
    """Draw the figures and the report of a study anew from its files."""
    from sonobreast.evaluation.report import write_report

    file = write_report(out, images=not no_images, prevalences=prevalence or ())
    console().print(f"wrote {file}", highlight=False, soft_wrap=True)


@study_app.command("leakage")
def study_leakage(
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder for tables, figures and report.html.")],
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a YAML file; k-fold, frozen backbone.")] = "leakage",
    weights: Weights = "hub",
    overrides: Overrides = None,
    exclude: Exclude = None,
    groups: Groups = None,
    strict: Strict = False,
) -> None:
    """Measure what copies in training and test do: random, grouped and curated divisions of the same images."""
    from sonobreast.config import load_recipe
    from sonobreast.data.cohort import Sources

    settings, sources = load_recipe(recipe, overrides or ()), Sources(data, groups, exclude, None, strict)
    with Progress() as (stage, advance, say):
        say("starting PyTorch")
        from sonobreast.training.leakage import run_leakage

        report = run_leakage(settings, sources, weights, out, reporter(stage, advance, say))
    say_report(report)


@study_app.command("reproduce")
def study_reproduce(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a YAML file; hold-out, frozen backbone.")],
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder for tables, figures and report.html.")],
    draws: Annotated[int, typer.Option("--draws", help="How many sub-samples, divisions and seeds are drawn.")] = 100,
    weights: Weights = "hub",
    overrides: Overrides = None,
    exclude: Exclude = None,
    groups: Groups = None,
    strict: Strict = False,
) -> None:
    """Draw a paper's sub-sample, division and seed many times: where does its printed figure fall?"""
    from sonobreast.config import load_recipe
    from sonobreast.data.cohort import Sources

    settings, sources = load_recipe(recipe, overrides or ()), Sources(data, groups, exclude, None, strict)
    with Progress() as (stage, advance, say):
        say("starting PyTorch")
        from sonobreast.training.reproduce import run_reproduction

        report = run_reproduction(settings, sources, weights, out, draws, reporter(stage, advance, say))
    say_report(report)


@app.command()
def published(
    table: Annotated[Path | None, typer.Argument(metavar="[CSV]", help="A table of your own to check.")] = None,
) -> None:
    """Check the printed tables of Aulia 2026 and Yadav 2024, or of a CSV, for what cannot be."""
    from sonobreast.evaluation.plausibility import check_csv, check_paper
    from sonobreast.evaluation.published import PAPERS
    from sonobreast.evaluation.table_findings import render_text

    if table is not None:
        typer.echo(render_text(check_csv(table)))
        return
    for key in PAPERS:
        typer.echo(render_text(check_paper(key)) + "\n")


@app.command()
def train(
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder of the study that holds this one run.")],
    architecture: Annotated[str, typer.Option(help="A name that `sonobreast models` lists, or any timm name.")],
    optimizer: Annotated[str, typer.Option(help="adam, rmsprop, sgdm, sgd, adamw or nadam.")] = "adam",
    recipe: Annotated[str, typer.Option(help="Recipe that gives all other settings.")] = "aulia2026",
    weights: Weights = "hub",
    overrides: Overrides = None,
    exclude: Exclude = None,
    groups: Groups = None,
    split: OwnSplit = None,
    labels: Labels = None,
    strict: Strict = False,
    no_images: NoImages = False,
) -> None:
    """Train one configuration: a study of a single architecture and optimizer."""
    from sonobreast.config import load_recipe
    from sonobreast.data.cohort import Sources

    single = [f"model.architectures=[{architecture}]", f"training.optimizers=[{optimizer}]"]
    settings = load_recipe(recipe, [*(overrides or ()), *single])
    _run(settings, Sources(data, groups, exclude, split, strict, labels), weights, out, images=not no_images)


def _run(recipe: Recipe, sources: Sources, weights: str, out: Path, *, images: bool) -> None:
    with Progress() as (stage, advance, say):
        say("starting PyTorch")
        import logging

        from sonobreast.evaluation.report import write_report
        from sonobreast.training.study import run_study

        for name in ("lightning.pytorch", "lightning.fabric"):  # its advice is not about this command
            logging.getLogger(name).setLevel(logging.ERROR)

        outcome = run_study(recipe, sources, weights, out, images=images, reporter=reporter(stage, advance, say))
        report = write_report(out, images=images) if outcome.finished else None
    terminal = console()
    if outcome.reused:
        terminal.print(f"{outcome.reused} of {outcome.finished} runs were finished before and kept.")
    print_results(out) if outcome.finished else None
    if report is not None:
        say_report(report)
    if outcome.failed:
        from sonobreast.errors import SonobreastError

        first, why = next(iter(outcome.failed.items()))
        raise SonobreastError(
            f"{len(outcome.failed)} run(s) could not be finished; the first: {first}: {why}",
            file=out / "failed.json",
            remedy="change the settings in a new --out (for example a lower training.learning_rate)",
        )


@app.command()
def evaluate(
    runs: Runs,
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder for tables, figures and report.html.")],
    configuration: Configuration = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Go on where images are also in the study's own set.")
    ] = False,
    exclude: Exclude = None,
    groups: Groups = None,
    labels: Labels = None,
    strict: Strict = False,
    no_images: NoImages = False,
) -> None:
    """Judge a frozen model on another hospital's images: figures beside the study's own, subgroups, recalibration."""
    from sonobreast.data.cohort import Sources

    with Progress() as (stage, advance, say):
        say("starting PyTorch")
        from sonobreast.inspection.evaluate import evaluate_runs

        report = evaluate_runs(
            runs,
            Sources(data, groups, exclude, None, strict, labels),
            out,
            configuration=configuration,
            allow_overlap=allow_overlap,
            images=not no_images,
            progress=staged(stage, advance),
            say=say,
        )
    say_report(report)


@app.command()
def stress(
    runs: SeveralRuns,
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder for stress.html, stress.csv and stress.json.")],
    configuration: Configurations = None,
    kinds: Annotated[
        list[str] | None, typer.Option("--kinds", metavar="KIND", help="Only this corruption; repeatable.")
    ] = None,
    limit: Limit = 80,
    subset: Judged = "test",
    seed: Seed = 0,
    exclude: Exclude = None,
    groups: Groups = None,
    labels: Labels = None,
    strict: Strict = False,
) -> None:
    """Judge corrupted images: gain, shadow, speckle, blur, JPEG and ten more, each at five strengths."""
    from sonobreast.data.cohort import Sources

    with Progress() as (stage, advance, say):
        say("starting PyTorch")
        from sonobreast.inspection.stress import stress_runs

        report = stress_runs(
            runs,
            Sources(data, groups, exclude, None, strict, labels),
            out,
            configurations=configuration,
            kinds=kinds,
            limit=limit or None,
            subset=subset,
            seed=seed,
            progress=staged(stage, advance),
            say=say,
        )
    say_report(report)


@app.command()
def shortcuts(
    runs: SeveralRuns,
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder for shortcuts.html, shortcuts.csv and shortcuts.json.")],
    configuration: Configurations = None,
    limit: Limit = 400,
    subset: Judged = "test",
    seed: Seed = 0,
    exclude: Exclude = None,
    groups: Groups = None,
    labels: Labels = None,
    strict: Strict = False,
) -> None:
    """Judge images without their lesion, the lesion or the border alone, and with marks taken away or added."""
    from sonobreast.data.cohort import Sources

    with Progress() as (stage, advance, say):
        say("starting PyTorch")
        from sonobreast.inspection.shortcuts import find_shortcuts

        report = find_shortcuts(
            runs,
            Sources(data, groups, exclude, None, strict, labels),
            out,
            configurations=configuration,
            limit=limit or None,
            subset=subset,
            seed=seed,
            progress=staged(stage, advance),
            say=say,
        )
    say_report(report)


@app.command()
def domain(
    runs: Runs,
    data: Annotated[Path, typer.Option("--data", help="The data set that the runs were trained on.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for tables, statistics and domain.html.")],
    configuration: Configuration = None,
    other: Annotated[
        list[Path] | None, typer.Option("--other", metavar="DIR", help="Another hospital's data set; repeatable.")
    ] = None,
    accept: Annotated[float, typer.Option("--accept", help="Share of scans that the threshold is to accept.")] = 0.95,
    outsiders: Annotated[int, typer.Option("--outsiders", metavar="N", help="Pictures of each kind.")] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Of the outsiders and the resamples.")] = 0,
) -> None:
    """Fit a detector of pictures that are no scans of the training domain, and try it on outsiders."""
    with Progress() as (stage, advance, say):
        say("starting PyTorch")
        from sonobreast.inspection.domain import judge_domain

        report = judge_domain(
            runs,
            data,
            out,
            configuration=configuration,
            others=other or (),
            accept=accept,
            per_kind=outsiders,
            seed=seed,
            progress=staged(stage, advance),
            say=say,
        )
    say_report(report)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or the folder of a study.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for overlays, tables and explain.html.")],
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE...]", help="Image files.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="A data set instead; maps are scored where it has masks.")
    ] = None,
    configuration: Configuration = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="CLASS", help="Class to explain, or predicted; else malignant.")
    ] = None,
    methods: Annotated[
        str, typer.Option("--methods", help="Separated by commas.")
    ] = "gradcam,smoothgrad,occlusion,mask",
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Most images; else 60, and 12 for occlusion.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the choice of images, noise and randomised weights.")] = 0,
) -> None:
    """Show where a run looked: maps over images, scored against masks, checked against randomised weights."""
    with Progress() as (stage, advance, say):
        say("starting PyTorch")
        from sonobreast.inspection.explain import explain_runs

        report = explain_runs(
            run,
            out,
            images=images or (),
            data=data,
            configuration=configuration,
            target=target,
            methods=tuple(m.strip() for m in methods.split(",") if m.strip()),
            limit=limit,
            seed=seed,
            progress=staged(stage, advance),
            say=say,
        )
    say_report(report)


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study.")],
    a: Annotated[str | None, typer.Argument(metavar="[A]", help="Configuration, such as ResNet50V2-adam.")] = None,
    b: Annotated[str | None, typer.Argument(metavar="[B]", help="The other one; without A and B, all pairs.")] = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this; repeatable.")] = None,
    other: Annotated[
        Path | None,
        typer.Option("--with", metavar="STUDY", help="A second study, or evaluation, of the same test images."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Write the comparison, too.")] = None,
) -> None:
    """Compare configurations of a study on the same test images: differences, intervals, tests, Holm's correction."""
    from sonobreast.errors import SonobreastError
    from sonobreast.evaluation import comparison, comparison_text
    from sonobreast.evaluation.predictions import read_predictions

    if (a is None) != (b is None):
        raise SonobreastError(
            f"only one configuration is given ({a})", remedy="give two, or none: then every pair is compared"
        )
    for folder in (study, other):
        if folder is not None and not (folder / "predictions.csv").is_file():
            raise SonobreastError(
                "this folder holds no predictions.csv",
                file=folder,
                remedy="give the folder that `sonobreast study run --out` or `sonobreast evaluate --out` wrote",
            )
    if out is not None:
        comparison_text.check_target(out)
    table = read_predictions(study / "predictions.csv")
    if other is not None:
        table = comparison.beside(table, read_predictions(other / "predictions.csv"))
    if a is None or b is None:
        family = comparison.compare_all(table, metrics=metric)
    else:
        family = comparison.compare_two(table, a, b, metrics=metric)
    print_comparison(family)
    if out is not None:
        comparison_text.write(out, family)
        console().print(f"wrote {out}", highlight=False, soft_wrap=True)


@app.command()
def models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these; also any timm name.")
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", help="Where weights are looked for: hub (its cache), a folder, or none.")
    ] = "hub",
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """List the networks: size, paper, licence, weights at hand, and what each can do."""
    with Progress() as (stage, advance, say):
        say("starting PyTorch")
        from sonobreast.models import listing

        found = listing.list_models(names or (), weights, staged(stage, advance))
    if as_json:
        typer.echo(listing.as_json(found))
    else:
        print_models(found)


@app.command()
def plan(
    width: Annotated[float, typer.Option(help="Full width wanted: 0.1 is plus or minus five points.")],
    expected: Annotated[float, typer.Option(help="The accuracy, sensitivity ... or AUC that is expected.")],
    design_effect: Annotated[float, typer.Option(help="How many images carry as much as one alone; 1 or more.")] = 1.0,
    auc: Annotated[bool, typer.Option("--auc", help="Plan for an AUC, not for a share of images.")] = False,
    malignant_share: Annotated[float, typer.Option(help="With --auc: share of cancers among the images.")] = 0.27,
    level: Annotated[float, typer.Option(help="Confidence level.")] = 0.95,
) -> None:
    """Say how many cases an interval of a given width needs."""
    from rich.table import Table

    from sonobreast.evaluation import planning

    share = malignant_share if auc else None
    terminal = console()
    terminal.print(planning.sentence(width, expected, design_effect, share, level), highlight=False, soft_wrap=True)
    table = Table()
    for name in planning.PLAN_COLUMNS:
        table.add_column(name, justify="right")
    for row in planning.rows(width, expected, design_effect, share, level):
        table.add_row(*row)
    terminal.print(table)


@app.command()
def export(
    runs: Runs,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder to be written.")],
    configuration: Configuration = None,
    variants: Annotated[
        str, typer.Option("--variants", metavar="LIST", help="int8,float16: also smaller forms, if they decide alike.")
    ] = "",
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="The study's images, if moved; for --variants.")
    ] = None,
) -> None:
    """Write a bundle that runs without PyTorch: one run, or several as one ensemble."""
    with Progress() as (stage, advance, say):
        say("starting PyTorch")
        from sonobreast.inspection.evaluate import find_runs
        from sonobreast.serving.export import export as write

        names = [v.strip() for v in variants.split(",") if v.strip()]
        chosen = find_runs(runs, configuration)
        done = write(chosen, bundle, variants=names, data=data, progress=staged(stage, advance))
    print_exported(done)


@bundle_app.command("check")
def bundle_check(bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")]) -> None:
    """Compare a bundle's files with their digests and run its self-test here."""
    from sonobreast.serving.self_test import check

    print_checked(check(bundle))


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images, and folders of images.")],
    out: Annotated[Path, typer.Option("--out", help="The table; the same call continues it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Also print each new row as a line of JSON.")] = False,
    overlays: Annotated[
        Path | None, typer.Option("--overlays", metavar="DIR", help="Folder for a picture of each image, with its map.")
    ] = None,
    dicom_out: Annotated[
        Path | None,
        typer.Option("--dicom-out", metavar="DIR", help="Folder for a report and a segmentation of each DICOM file."),
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option("--spacing-mm", min=1e-4, max=10.0, help="Pixel spacing in mm, where a file states none."),
    ] = None,
    frames: Annotated[
        str, typer.Option("--frames", metavar="RULE", help="Of DICOM clips: middle, first, last, ends, or how many.")
    ] = "middle",
    region: Annotated[
        str,
        typer.Option("--region", metavar="RULE", help="Of DICOM split screens: largest, each, or which from the left."),
    ] = "largest",
    variant: Annotated[
        str | None, typer.Option("--variant", metavar="NAME", help="int8 or float16, where the bundle has it.")
    ] = None,
) -> None:
    """Predict images with a bundle: one row a picture. Research use only."""
    import json

    from sonobreast.serving.inference import infer
    from sonobreast.serving.predictor import load_predictor
    from sonobreast.serving.readers import choice_of

    choice = choice_of(frames, region)
    predictor = load_predictor(bundle, variant=variant)
    with Progress() as (stage, advance, _):
        outcome = infer(
            predictor,
            paths,
            out,
            overlays=overlays,
            dicom_out=dicom_out,
            spacing_mm=spacing,
            choice=choice,
            take=(lambda row: typer.echo(json.dumps(row, allow_nan=False))) if as_json else None,
            progress=staged(stage, advance),
        )
    print_inference(outcome, out, quiet=as_json)


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any that is free.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others can reach needs --keys.")
    ] = "127.0.0.1",
    keys: Annotated[
        Path | None, typer.Option("--keys", metavar="FILE", help="Lines that `sonobreast serve-key` prints.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Host name by which clients call it; repeatable.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=64, help="Images predicted at a time; default: cores, up to 8."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option("--tls-certificate", metavar="FILE", help="PEM.")] = None,
    certificate_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="PEM.")] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", metavar="NAME", help="int8 or float16, where the bundle has it.")
    ] = None,
) -> None:
    """Serve a bundle: a page for people and an API. Research use only."""
    from sonobreast.serving.server import serve as run

    tls = (certificate, certificate_key)
    run(
        bundle,
        host=host,
        port=port,
        keys=keys,
        names=tuple(name or ()),
        workers=workers,
        tls=tls,
        variant=variant,
        say=say_serving,
    )


@app.command("serve-key")
def serve_key(
    name: Annotated[str, typer.Argument(help="Whose key it is, such as ward-3: it stands in the log.")],
) -> None:
    """Make an API key: its line for the file of --keys on standard output, the key itself beside it."""
    from sonobreast.serving.keys import new_key

    key, line = new_key(name)
    typer.echo(line)
    typer.echo(f"the key, shown this once: {key}", err=True)


def main() -> None:
    """Entry point: turns every error into a sentence and an exit status, unless ``--debug`` is given."""
    # Threads that wait busily for one another slow training down several times when another process shares the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or bool(os.environ.get("SONOBREAST_DEBUG"))
    sys.exit(_call(arguments, debug))


def _call(arguments: list[str], debug: bool) -> int:
    from sonobreast.errors import SonobreastError

    try:
        code = int(app(args=arguments, prog_name="sonobreast", standalone_mode=False) or 0)
        if code == 130:  # Typer turns Ctrl-C into this status
            raise KeyboardInterrupt
        return code
    except SonobreastError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, typer.Abort):
        print("\nstopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a mistake in the command line
            context = getattr(error, "ctx", None)
            help_text = f"\n  try: {context.command_path} --help" if context is not None else ""
            print(f"error: {error.format_message()}{help_text}", file=sys.stderr)
            return int(error.exit_code)
        print(_unexpected(error), file=sys.stderr)
        return 1


def _unexpected(error: Exception) -> str:
    from sonobreast.records import disk_error

    if isinstance(error, OSError):
        return f"error: {disk_error(error, error.filename or '')}"
    if isinstance(error, MemoryError):
        return "error: not enough memory\n  what to do: use a smaller preprocess.size, or fewer augment.views"
    if isinstance(error, ImportError):
        return (
            f"error: a library is missing ({error.name or error})\n"
            "  what to do: install sonobreast[train] (training, export), sonobreast[study] (reports) or "
            "sonobreast[serve] (predictions)"
        )
    return (
        f"error: unexpected {type(error).__name__}: {error}\n"
        "  what to do: give the command again with --debug and report what it prints"
    )


if __name__ == "__main__":
    main()
