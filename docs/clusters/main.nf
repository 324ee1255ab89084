// nextflow run docs/clusters/main.nf --cohort cohort.csv --store features.zarr --encoder uni --shards 8
params.shards = 8

process EMBED {
    accelerator 1
    cpus 8
    memory '32 GB'
    errorStrategy 'retry'
    maxRetries 2

    input:
    val shard

    script:
    """
    mmap extract ${file(params.cohort)} ${file(params.store)} --encoder ${params.encoder} \
        --magnifications 20,10,5 --shard ${shard}/${params.shards}
    """
}

workflow {
    EMBED(channel.of(0..<(params.shards as int)))
}
