"""Supporting code of both notebooks, in four rooms, one module for each job.

common    what both notebooks need
  environment    Kaggle, Colab or elsewhere; packages and their versions; where files lie
  device         the device, its precision, whether this torch has kernels for it; seeds
  distributed    several processes under torchrun: agreement, shares, sums
  launch         a notebook as a script in a process for each GPU
  notebooks      a notebook's definitions as a module, for scripts and tests
  threads        calls on other threads, ahead or waited for
  files          files that are either whole or not there; what lies in a folder
  hub            files of the Hugging Face hub, from its cache or fetched; its errors as sentences
  images         images in, whatever their kind; the files that a path, a folder or a pattern means
  pixels         more than 8 bits brought into 8
  figures        how figures look, are kept and shown
  boxes          the box of a mask
vit       q1's
  config         settings: presets, what the user gave, what can work
  data           CIFAR-10 or your own images found or fetched, as tensors; split
  layouts        the names by which data sets are recognised
  array_files, image_files, archives, image_set    their layouts read, decoded and checked
  augment        crops, flips, RandAugment, Random Erasing on batches (MixUp, CutMix: q1, section 4)
  engine         a training step that fits into memory, compiled, as one CUDA graph
  clock          how far a run is, by steps or by time, which q1's lr_at follows; its counts, times and log
  run_folder     whether an output folder can be used, and where the files of an earlier run go
  checkpoint     last.pth, history.csv, run_summary.json; resuming
  best_weights   best_vit_cifar10.pth: the best weights of a run chosen, kept, read back
  transfer       weights of a file put into a ViT, all of them or those that fit
  predict        the user's pictures and Kaggle's test images classified
  evaluate       predictions, test-time augmentation, accuracy, calibration
  figures        curves, reports, attention
segment   q2's
  inputs         settings, and what a run works on: images, a video, phrases, or else drawn examples
  prompts        text to phrases, and to GroundingDINO's captions
  weights        where the models' files are searched for, and fetched (by common/hub)
  models         the three networks loaded, as one object
  grounding_dino, sam2_image, sam2_video, clipseg    each of them
  batches        images that go through the networks together, while others are read
  pretrained     tensors loaded into a model, all of them or an error
  detections     the record of one object; how masks overlap
  tracks         which detection of a video is which object; what a later look may still change
  images         which images are q2's inputs, and how the results of each are named
  sequences      numbered pictures and animated ones as a video
  video          frames in; an MP4 with the input's sound out
  media, colours, sound    of video: files opened and found cut; frames as a screen shows them; sound carried over
  examples       drawn pictures and a clip to try q2 on
  outputs        masks, overlay, detections.json, tracks.json
  exports        COCO, YOLO and cut-outs of several images
  overlay, figures, player, playground    what a person sees
shapes    the drawn world of both
  draw           the renderer: shapes, colours, textures
  classes        the ten classes that stand in where no CIFAR-10 is found
  scenes, clips  several objects with their masks; the same in motion
"""

import os

# Threads that wait for each other spin for a moment only, then sleep (libgomp, before torch loads it). By default they
# spin so long that beside other work a video takes twice as long (assets/measured/bench_q2_threads.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
