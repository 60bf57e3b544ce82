rule fetch:
    input:
        packaged=packaged_files,
    output:
        manifest="resources/raw/{raw}/manifest.json",
    log:
        "results/logs/fetch/{raw}.log",
    benchmark:
        "results/benchmarks/fetch/{raw}.tsv"
    # Data and CSI come first: the answer needs no training.
    priority: 10
    # Nodes of many clusters have no way out to the publishers.
    localrule: True
    conda:
        "../../environment.yml"
    params:
        files=files_entry,
    message:
        "Fetch the raw files of {wildcards.raw}"
    script:
        "../scripts/fetch.py"


use rule fetch as fetch_checkpoint with:
    input:
        packaged=[],
    output:
        manifest="resources/checkpoints/{extractor}/manifest.json",
    log:
        "results/logs/fetch_checkpoint/{extractor}.log",
    benchmark:
        "results/benchmarks/fetch_checkpoint/{extractor}.tsv"
    wildcard_constraints:
        extractor=one_of(fetched_extractors()) or "none",
    params:
        files=source_of_checkpoint,
    message:
        "Fetch the checkpoint of {wildcards.extractor}"


rule convert:
    input:
        manifest=manifest_of,
    output:
        train="results/lmdb/{dataset}/train.lmdb",
        val="results/lmdb/{dataset}/val.lmdb",
        test="results/lmdb/{dataset}/test.lmdb",
    log:
        "results/logs/convert/{dataset}.log",
    benchmark:
        "results/benchmarks/convert/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(
            name
            for name in PROJECT.datasets
            if "test" in PROJECT.datasets[name].splits
        ),
    priority: 10
    group:
        "convert" if SMALL else None
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, threads, attempt: (1500 + 1000 * threads) * attempt,
        runtime=lambda wildcards, attempt: minutes(10 if SMALL else 240, attempt),
    params:
        raw=subpath(input.manifest, parent=True),
        folder=subpath(output.train, parent=True),
        conversion=conversion_entry,
        impl=implementation_of_conversion,
    message:
        "Convert {wildcards.dataset} to LMDB"
    shell:
        "atomcsi convert --name {wildcards.dataset} --dataset {params.conversion:q}"
        " --raw {params.raw} --out {params.folder} --threads {threads} --log {log}"


# Outputs cannot depend on wildcards, and upstream datasets need no test split.
use rule convert as convert_without_test with:
    output:
        train="results/lmdb/{dataset}/train.lmdb",
        val="results/lmdb/{dataset}/val.lmdb",
    wildcard_constraints:
        dataset=one_of(
            name
            for name in PROJECT.datasets
            if PROJECT.datasets[name].splits == ("train", "val")
        ),
