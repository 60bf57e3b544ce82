rule embed:
    input:
        lmdb="results/lmdb/{dataset}/train.lmdb",
        checkpoint=checkpoint_file,
        fetched=manifest_of_checkpoint,
    output:
        embedding="results/embeddings/{embedding}/{dataset}.h5",
    log:
        "results/logs/embed/{embedding}/{dataset}.log",
    benchmark:
        "results/benchmarks/embed/{embedding}/{dataset}.tsv"
    priority: 10
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=megabytes(4000, per_megabyte=1),
        # Two seconds are what a slab takes the paper's extractor on a processor.
        runtime=lambda wildcards, attempt: minutes(
            10 + embedded(wildcards)[1].structures / 30, attempt
        ),
    params:
        extractor=extractor_entry,
        sampling=sampling_entry,
        name=lambda wildcards: embedded(wildcards)[0],
        impl=implementation_of_embedding,
    message:
        "Embed {wildcards.dataset} as {wildcards.embedding}"
    script:
        "../scripts/embed.py"
