rule embed:
    input:
        lmdb="results/lmdb/{dataset}/train.lmdb",
    output:
        embedding="results/embeddings/{extractor}/{dataset}.h5",
    log:
        "results/logs/embed/{extractor}/{dataset}.log",
    benchmark:
        "results/benchmarks/embed/{extractor}/{dataset}.tsv"
    # The answer comes before the proof: CSI needs no training.
    priority: 10
    conda:
        "atomcsi"
    threads: 1
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        extractor=extractor_entry,
        embedding=RUN.embedding.model_dump(mode="json"),
        sampling=sampling_entry,
    message:
        "Embed {wildcards.dataset} with {wildcards.extractor}"
    script:
        "../scripts/embed.py"
