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
    conda:
        "../../environment.yml"
    resources:
        mem_mb=500,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        files=files_entry,
    message:
        "Fetch the raw files of {wildcards.raw}"
    script:
        "../scripts/fetch.py"


rule convert:
    input:
        manifest=manifest_of,
    output:
        lmdb="results/lmdb/{dataset}/{split}.lmdb",
    log:
        "results/logs/convert/{dataset}/{split}.log",
    benchmark:
        "results/benchmarks/convert/{dataset}/{split}.tsv"
    priority: 10
    conda:
        "../../environment.yml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        conversion=conversion_entry,
        impl=implementation_of_conversion,
    message:
        "Convert the {wildcards.split} split of {wildcards.dataset} to LMDB"
    script:
        "../scripts/convert.py"
